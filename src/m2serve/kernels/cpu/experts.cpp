#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "linear.h"
#include "pool.h"
#include "prepared.h"
#include "token_types.h"

namespace m2 {
namespace {

// More tokens are computed in slices, which bounds the memory of what lies between the products.
constexpr int64_t kTokensAtOnce = 1024;
// With so few rows an expert, and with tiles, a chunk of the second product is over in microseconds,
// and reads of every expert a piece: long pieces are worth more than even ends.
constexpr int64_t kFewRows = 4;
constexpr int64_t kLongChunksPerThread = 2;

// The pairs of a token and one of its experts, sorted by expert.
struct Routing {
    std::vector<int32_t> tokens;  // of every pair
    std::vector<float> weights;
    std::vector<int32_t> pairs;   // 0, 1, 2, ...
    std::vector<int32_t> hit;     // experts with at least one pair
    std::vector<int64_t> starts;  // first pair of every hit expert, and the end
    int64_t most_pairs;           // of an expert; above the tokens where one names it twice

    void sort(const int64_t* ids, const float* scores, int64_t num_tokens, int64_t top_k,
              int64_t num_experts) {
        const int64_t num_pairs = num_tokens * top_k;
        pairs.resize(static_cast<size_t>(num_pairs));
        std::iota(pairs.begin(), pairs.end(), 0);
        next_.assign(static_cast<size_t>(num_experts) + 1, 0);
        for (int64_t i = 0; i < num_pairs; ++i) ++next_[static_cast<size_t>(ids[i]) + 1];
        most_pairs = *std::max_element(next_.begin(), next_.end());
        hit.clear();
        starts.clear();
        for (int64_t e = 0; e < num_experts; ++e) {
            if (next_[e + 1] > 0) {
                hit.push_back(static_cast<int32_t>(e));
                starts.push_back(next_[e]);
            }
            next_[e + 1] += next_[e];
        }
        starts.push_back(num_pairs);
        tokens.resize(static_cast<size_t>(num_pairs));
        weights.resize(static_cast<size_t>(num_pairs));
        for (int64_t i = 0; i < num_pairs; ++i) {
            const auto at = static_cast<size_t>(next_[ids[i]]++);
            tokens[at] = static_cast<int32_t>(i / top_k);
            weights[at] = scores[i];
        }
    }

private:
    std::vector<int64_t> next_;  // first free pair of every expert
};

// What one call keeps between its three passes.
struct Pass {
    const m2_weight& w13;
    const m2_weight& w2;
    const Routing& routing;
    Activations x, hidden;
    float* between;  // [pairs, I]; null where the products are fused
    float* y;        // [tokens, H]

    // Where the activations of a pair are: tiles want those of an expert one after the other.
    const int32_t* rows_of_x() const {
        return x.kind == ActivationKind::kTiles ? routing.pairs.data() : routing.tokens.data();
    }
    int64_t num_hit() const { return static_cast<int64_t>(routing.hit.size()); }
    // Whether both products and the gate between them are one operation.
    bool is_fused() const {
        return best_kernels()->gate_up && x.kind == ActivationKind::kTiles &&
               hidden.kind == ActivationKind::kTiles;
    }
};

struct Scratch {
    Workspace kernel, rows;
};
Scratch& scratch_of_thread() {
    thread_local Scratch scratch;
    return scratch;
}

// Rows n0..n1 of silu(W1 x) * W3 x for all tokens of a hit expert.
void gate_and_up(const Pass& pass, int64_t hit, int64_t n0, int64_t n1) {
    const Kernels& run = *best_kernels();
    Scratch& scratch = scratch_of_thread();
    const int64_t first = pass.routing.starts[hit], count = pass.routing.starts[hit + 1] - first;
    const int64_t width = pass.w13.rows, size = n1 - n0;
    const int32_t* tokens = pass.rows_of_x() + first;
    const int64_t expert = pass.routing.hit[hit];
    Matrix w1 = matrix_of(pass.w13, 2 * expert), w3 = matrix_of(pass.w13, 2 * expert + 1);
    w1.next_codes = w3.codes;
    if (size == width && hit + 1 < pass.num_hit()) {
        w3.next_codes = matrix_of(pass.w13, 2 * pass.routing.hit[hit + 1]).codes;
    }
    if (pass.is_fused()) {
        void* memory = scratch.kernel.get(run.gate_up_scratch_bytes(w1.columns));
        return run.gate_up(w1, w3, n0, n1, pass.x, tokens, count, pass.hidden, memory);
    }
    void* kernel = scratch.kernel.get(run.scratch_bytes);
    auto* up = static_cast<float*>(scratch.rows.get(count * size * 4));
    float* gate = pass.between + first * width + n0;
    run.matmul(w1, n0, n1, pass.x, tokens, count, gate, width, kernel);
    run.matmul(w3, n0, n1, pass.x, tokens, count, up, size, kernel);
    for (int64_t m = 0; m < count; ++m) run.silu_mul(gate + m * width, up + m * size, size);
}

// Columns n0..n1 of the output of all tokens: the hit experts in order, so that the sum of a token
// does not depend on which thread takes what.
void down(const Pass& pass, int64_t num_tokens, int64_t n0, int64_t n1) {
    const Kernels& run = *best_kernels();
    const auto add_scaled_row = best_token_kernels()->add_scaled_row;
    Scratch& scratch = scratch_of_thread();
    const int64_t width = pass.w2.rows, size = n1 - n0;
    void* kernel = scratch.kernel.get(run.scratch_bytes);
    auto* part = static_cast<float*>(scratch.rows.get(pass.routing.most_pairs * size * 4));
    for (int64_t t = 0; t < num_tokens; ++t) {
        std::memset(pass.y + t * width + n0, 0, static_cast<size_t>(size) * 4);
    }
    for (int64_t hit = 0; hit < pass.num_hit(); ++hit) {
        const int64_t first = pass.routing.starts[hit], end = pass.routing.starts[hit + 1];
        Matrix w2 = matrix_of(pass.w2, pass.routing.hit[hit]);
        if (hit + 1 < pass.num_hit()) {
            w2.next_codes = matrix_of(pass.w2, pass.routing.hit[hit + 1]).codes;
        }
        run.matmul(w2, n0, n1, pass.hidden,
                   pass.routing.pairs.data() + first, end - first, part, size, kernel);
        for (int64_t pair = first; pair < end; ++pair) {
            const float weight = pass.routing.weights[pair];
            const float* from = part + (pair - first) * size;
            add_scaled_row(from, weight, size, pass.y + pass.routing.tokens[pair] * width + n0);
        }
    }
}

void slice(const m2_weight& w13, const m2_weight& w2, const float* x, const float* weights,
           const int64_t* ids, int64_t num_tokens, int64_t top_k, float* y,
           m2_activation activation) {
    thread_local Routing routing;
    thread_local Workspace for_x, for_hidden, for_between;
    routing.sort(ids, weights, num_tokens, top_k, w2.matrices);
    const int64_t num_hit = static_cast<int64_t>(routing.hit.size());
    const int64_t pairs = num_tokens * top_k;
    const int64_t rows = pairs / std::max<int64_t>(1, num_hit);
    const ActivationKind kind = kind_for(w13, activation, rows);
    const bool tiles = kind == ActivationKind::kTiles;
    Pass pass{w13,
              w2,
              routing,
              make_activations(w13, kind, tiles ? pairs : num_tokens, for_x),
              make_activations(w2, kind_for(w2, activation, rows), pairs, for_hidden),
              nullptr,
              y};
    if (!pass.is_fused()) {
        pass.between = static_cast<float*>(for_between.get(pairs * w13.rows * 4));
    }
    prepare(w13, pass.x, tiles ? pairs : num_tokens, x, tiles ? routing.tokens.data() : nullptr);
    const Seating& seats = seating();
    int64_t chunks[kMaxNodes];
    const int64_t least13 = least_rows(w13), least2 = least_rows(w2);
    const int64_t block = rows_per_chunk(num_hit * w13.rows, seats.num_threads(), least13);
    const auto blocks = [&](int node) {  // of one expert
        return num_chunks(rows_of_node(w13.rows, seats, node, least13), block);
    };
    for (int node = 0; node < seats.num_nodes; ++node) chunks[node] = num_hit * blocks(node);
    parallel_for_nodes(seats, chunks, [&](int node, int64_t chunk, int) {
        const Rows own = rows_of_node(w13.rows, seats, node, least13);
        const Rows rows = chunk_of(own, block, chunk % blocks(node));
        gate_and_up(pass, chunk / blocks(node), rows.begin, rows.end);
    });
    if (!pass.is_fused()) prepare(w2, pass.hidden, pairs, pass.between);
    const bool long_chunks = rows <= kFewRows || pass.hidden.kind == ActivationKind::kTiles;
    const int64_t per_thread = long_chunks ? kLongChunksPerThread : kChunksPerThread;
    const int64_t columns = rows_per_chunk(w2.rows, seats.num_threads(), least2, per_thread);
    for (int node = 0; node < seats.num_nodes; ++node) {
        chunks[node] = num_chunks(rows_of_node(w2.rows, seats, node, least2), columns);
    }
    parallel_for_nodes(seats, chunks, [&](int node, int64_t chunk, int) {
        const Rows rows = chunk_of(rows_of_node(w2.rows, seats, node, least2), columns, chunk);
        down(pass, num_tokens, rows.begin, rows.end);
    });
}

}  // namespace

void experts(const m2_weight& w13, const m2_weight& w2, const float* x, const float* weights,
             const int64_t* ids, int64_t num_tokens, int64_t top_k, float* y,
             m2_activation activation) {
    for (int64_t t = 0; t < num_tokens; t += kTokensAtOnce) {
        const int64_t count = std::min(kTokensAtOnce, num_tokens - t);
        slice(w13, w2, x + t * w13.columns, weights + t * top_k, ids + t * top_k, count, top_k,
              y + t * w2.rows, activation);
    }
}

}  // namespace m2
