#include "linear.h"

#include <algorithm>
#include <array>

#include "pool.h"
#include "prepared.h"

namespace m2 {
namespace {

constexpr int kMostWeights = 8;
// Activations of so many rows leave the second cache between two chunks of weights: the fewer chunks
// the better.
constexpr int64_t kManyRows = 128, kLongChunks = 2;
// More results than this are written past the caches: to have them there they would be read first.
constexpr int64_t kStreamedResults = 1 << 20;
// A slice has rows for whole pairs of tiles, and so many of them that its weights are worth reading
// again; of the router's, which stay in the second cache, fewer.
constexpr int64_t kSliceRows = 32, kLeastSlice = 256, kLeastOfRouter = kSliceRows;

struct Part {
    const m2_weight* weight;
    Activations x;
    float* y;
    int64_t width;  // of a row of y
};

void multiply(const Part& part, int64_t matrix, Rows rows, int64_t num_rows) {
    thread_local Workspace scratch;
    const Kernels& run = *best_kernels();
    float* y = part.y + matrix * part.weight->rows + rows.begin;
    run.matmul(matrix_of(*part.weight, matrix), rows.begin, rows.end, part.x, nullptr, num_rows, y,
               part.width, scratch.get(run.scratch_bytes));
}

// Slices of rows of activations, each of which a thread prepares for itself and multiplies with all
// weights: it stays in its second cache.
struct Slices {
    ActivationKind kind;
    int64_t num_rows, count;  // no slices: another way is faster

    Rows rows(int64_t index) const { return {border(index), border(index + 1)}; }

  private:
    int64_t border(int64_t index) const {
        return index == count ? num_rows : num_rows * index / count / kSliceRows * kSliceRows;
    }
};

// For weights that need no expanding, which would be done again for every slice.
Slices slices_of(const m2_weight* const* weights, int num_weights, int64_t num_rows,
                 m2_activation activation) {
    const m2_weight& first = *weights[0];
    const ActivationKind kind = kind_for(first, activation, num_rows);
    const bool is_router = first.format == M2_F32;
    if (kind != ActivationKind::kTurned && !is_router) return {};
    for (int i = 1; i < num_weights; ++i) {
        const bool is_same = kind_for(*weights[i], activation, num_rows) == kind &&
                             share_activations(first, *weights[i]);
        if (!is_same) return {};
    }
    const Seating& seats = seating();
    const int64_t bytes = num_rows * first.columns * (is_router ? 4 : 2);
    const int64_t count = std::max(kLongChunks * seats.num_threads(), bytes / kSliceBytes);
    const int64_t least = is_router ? kLeastOfRouter : kLeastSlice;
    if (seats.has_places || num_rows / count < least) return {};
    return {kind, num_rows, count};
}

void multiply_slice(const m2_weight* const* weights, int num_weights, const Slices& slices,
                    int64_t index, const float* x, bool streams_results, float* const* y) {
    const auto [first, end] = slices.rows(index);
    const int64_t num_rows = end - first;
    thread_local Workspace for_activations;
    Activations own = prepared(*weights[0], slices.kind, num_rows,
                               x + first * weights[0]->columns, for_activations, true);
    own.streams_results = streams_results;
    for (int i = 0; i < num_weights; ++i) {
        const m2_weight& weight = *weights[i];
        const int64_t width = weight.matrices * weight.rows;
        const Part part{&weight, own, y[i] + first * width, width};
        for (int64_t matrix = 0; matrix < weight.matrices; ++matrix) {
            multiply(part, matrix, {0, weight.rows}, num_rows);
        }
    }
}

}  // namespace

void linears(const m2_weight* const* weights, int num_weights, const float* x, int64_t num_rows,
             float* const* y, m2_activation activation) {
    if (num_rows == 0) return;
    int64_t total_rows = 0;
    for (int i = 0; i < num_weights; ++i) total_rows += weights[i]->matrices * weights[i]->rows;
    const bool streams_results = num_rows * total_rows * 4 > kStreamedResults;
    const Slices slices = slices_of(weights, num_weights, num_rows, activation);
    if (slices.count > 0) {
        return parallel_for(slices.count, [&](int64_t slice, int) {
            multiply_slice(weights, num_weights, slices, slice, x, streams_results, y);
        });
    }
    thread_local std::array<Workspace, kMostWeights> workspaces;
    std::array<Part, kMostWeights> parts{};
    for (int i = 0; i < num_weights; ++i) {
        const m2_weight& weight = *weights[i];
        Part& part = parts[i];
        part.weight = &weight;
        part.y = y[i];
        part.width = weight.matrices * weight.rows;
        const ActivationKind kind = kind_for(weight, activation, num_rows);
        const Part* same = std::find_if(parts.data(), &part, [&](const Part& earlier) {
            return earlier.x.kind == kind && share_activations(*earlier.weight, weight);
        });
        if (same != &part) {
            part.x = same->x;
            continue;
        }
        part.x = prepared(weight, kind, num_rows, x, workspaces[i]);
        part.x.streams_results = streams_results;
    }
    const Seating& seats = seating();
    int64_t least = kLeastRows;
    for (int i = 0; i < num_weights; ++i) least = std::max(least, least_rows(*weights[i]));
    const int64_t block = rows_per_chunk(total_rows, seats.num_threads(), least,
                                         num_rows < kManyRows ? kChunksPerThread : kLongChunks);
    const auto own_rows = [&](const Part& part, int node) {
        return rows_of_node(part.weight->rows, seats, node, least_rows(*part.weight));
    };
    const auto blocks = [&](const Part& part, int node) {  // of one matrix
        return num_chunks(own_rows(part, node), block);
    };
    int64_t chunks[kMaxNodes] = {};
    for (int node = 0; node < seats.num_nodes; ++node) {
        for (int i = 0; i < num_weights; ++i) {
            chunks[node] += weights[i]->matrices * blocks(parts[i], node);
        }
    }
    parallel_for_nodes(seats, chunks, [&](int node, int64_t chunk, int) {
        const Part* part = parts.data();
        for (int64_t all; chunk >= (all = part->weight->matrices * blocks(*part, node)); ++part) {
            chunk -= all;
        }
        const int64_t each = blocks(*part, node);
        const Rows own = own_rows(*part, node);
        multiply(*part, chunk / each, chunk_of(own, block, chunk % each), num_rows);
    });
}

void linear(const m2_weight& weight, const float* x, int64_t num_rows, float* y,
            m2_activation activation) {
    const m2_weight* const one = &weight;
    linears(&one, 1, x, num_rows, &y, activation);
}

}  // namespace m2
