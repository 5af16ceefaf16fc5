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
constexpr int64_t kTokensAtOnce = 2048;
// With so few rows an expert, and with tiles, a chunk of the second product is over in microseconds,
// and reads of every expert a piece: long pieces are worth more than even ends. With so many, every
// chunk puts their activations in order anew.
constexpr int64_t kFewRows = 4, kManyRows = 16;
constexpr int64_t kLongChunksPerThread = 2;

// The pairs of a token and one of its experts, sorted by expert.
struct Routing {
    std::vector<int32_t> tokens;  // of every pair
    std::vector<float> weights;
    std::vector<int32_t> pairs;   // 0, 1, 2, ...
    std::vector<int32_t> hit;     // experts with at least one pair
    std::vector<int64_t> starts;  // first pair of every hit expert, and the end
    // Rows where those of an expert begin with a slab: of every pair, and whose they are (-1: none).
    std::vector<int32_t> slots, pair_of_slot, token_of_slot;
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

    void fill_slabs() {
        slots.resize(tokens.size());
        pair_of_slot.clear();
        token_of_slot.clear();
        for (size_t at = 0; at + 1 < starts.size(); ++at) {
            for (int64_t pair = starts[at]; pair < starts[at + 1]; ++pair) {
                slots[static_cast<size_t>(pair)] = static_cast<int32_t>(pair_of_slot.size());
                pair_of_slot.push_back(static_cast<int32_t>(pair));
                token_of_slot.push_back(tokens[static_cast<size_t>(pair)]);
            }
            const size_t end = (pair_of_slot.size() + kSlabRows - 1) / kSlabRows * kSlabRows;
            pair_of_slot.resize(end, -1);
            token_of_slot.resize(end, -1);
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
        return is_for_tiles(x.kind) ? rows_of(x.kind) : routing.tokens.data();
    }
    const int32_t* rows_of_hidden() const { return rows_of(hidden.kind); }
    int64_t num_hit() const { return static_cast<int64_t>(routing.hit.size()); }
    // Whether both products and the gate between them are one operation.
    bool is_fused() const {
        return best_kernels()->gate_up && is_for_tiles(x.kind) && hidden.kind == x.kind;
    }

private:
    const int32_t* rows_of(ActivationKind kind) const {
        return kind == ActivationKind::kTurned ? routing.slots.data() : routing.pairs.data();
    }
};

struct Scratch {
    Workspace kernel, rows;
};
Scratch& scratch_of_thread() {
    thread_local Scratch scratch;
    return scratch;
}

struct GateChunk {
    int64_t hit;
    Rows rows;
};
// The rows of silu(W1 x) * W3 x for all tokens of a hit expert. `next` is what the thread is likely
// to take afterwards; hit -1: nothing.
void gate_and_up(const Pass& pass, const GateChunk& chunk, const GateChunk& next) {
    const auto [hit, rows] = chunk;
    const auto [n0, n1] = rows;
    const Kernels& run = *best_kernels();
    Scratch& scratch = scratch_of_thread();
    const int64_t first = pass.routing.starts[hit], count = pass.routing.starts[hit + 1] - first;
    const int64_t width = pass.w13.rows, size = n1 - n0;
    const int32_t* tokens = pass.rows_of_x() + first;
    const int64_t expert = pass.routing.hit[hit];
    Matrix w1 = matrix_of(pass.w13, 2 * expert), w3 = matrix_of(pass.w13, 2 * expert + 1);
    w1.next = w3.from(n0);
    if (next.hit >= 0) {
        w3.next = matrix_of(pass.w13, 2 * pass.routing.hit[next.hit]).from(next.rows.begin);
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
    const bool adds = run.add_matmul && is_for_tiles(pass.hidden.kind);
    auto* part = adds ? nullptr
                      : static_cast<float*>(scratch.rows.get(pass.routing.most_pairs * size * 4));
    for (int64_t t = 0; t < num_tokens; ++t) {
        std::memset(pass.y + t * width + n0, 0, static_cast<size_t>(size) * 4);
    }
    for (int64_t hit = 0; hit < pass.num_hit(); ++hit) {
        const int64_t first = pass.routing.starts[hit], end = pass.routing.starts[hit + 1];
        Matrix w2 = matrix_of(pass.w2, pass.routing.hit[hit]);
        if (hit + 1 < pass.num_hit()) {
            w2.next = matrix_of(pass.w2, pass.routing.hit[hit + 1]).from(n0);
        }
        const int32_t* rows = pass.rows_of_hidden() + first;
        if (adds) {
            run.add_matmul(w2, n0, n1, pass.hidden, rows, end - first,
                           {pass.y + n0, width, pass.routing.tokens.data() + first,
                            pass.routing.weights.data() + first},
                           kernel);
            continue;
        }
        run.matmul(w2, n0, n1, pass.hidden, rows, end - first, part, size, kernel);
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
    const ActivationKind x_kind = kind_for(w13, activation, rows);
    const ActivationKind hidden_kind = kind_for(w2, activation, rows);
    const auto turns = [](ActivationKind kind) { return kind == ActivationKind::kTurned; };
    if (turns(x_kind) || turns(hidden_kind)) routing.fill_slabs();
    const int64_t slots = static_cast<int64_t>(routing.pair_of_slot.size());
    const int64_t x_rows = turns(x_kind) ? slots : is_for_tiles(x_kind) ? pairs : num_tokens;
    const int64_t hidden_rows = turns(hidden_kind) ? slots : pairs;
    Pass pass{w13,
              w2,
              routing,
              make_activations(w13, x_kind, x_rows, for_x),
              make_activations(w2, hidden_kind, hidden_rows, for_hidden),
              nullptr,
              y};
    if (!pass.is_fused()) {
        pass.between = static_cast<float*>(for_between.get(pairs * w13.rows * 4));
    }
    const int32_t* sorted =
        turns(x_kind) ? routing.token_of_slot.data() : routing.tokens.data();
    prepare(w13, pass.x, x_rows, x, is_for_tiles(x_kind) ? sorted : nullptr);
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
        const auto gate_chunk = [&](int64_t at) {
            return GateChunk{at / blocks(node), chunk_of(own, block, at % blocks(node))};
        };
        const GateChunk next =
            chunk + 1 < chunks[node] ? gate_chunk(chunk + 1) : GateChunk{-1, {}};
        gate_and_up(pass, gate_chunk(chunk), next);
    });
    if (!pass.is_fused()) {
        prepare(w2, pass.hidden, hidden_rows, pass.between,
                turns(hidden_kind) ? routing.pair_of_slot.data() : nullptr);
    }
    const bool long_chunks = rows <= kFewRows || rows >= kManyRows || is_for_tiles(hidden_kind);
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
