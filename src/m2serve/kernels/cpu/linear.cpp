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
constexpr int64_t kSliceBytes = 1 << 20, kSliceRows = 32;

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

// Slices of rows of activations, each of which a thread turns for itself and multiplies with all
// weights: they stay in its second cache.
struct Slices {
    int64_t size, count;  // no slices: another way is faster
};
constexpr int64_t kLeastSlice = 256;

Slices slices_of(const m2_weight* const* weights, int num_weights, int64_t num_rows,
                 m2_activation activation) {
    const Seating& seats = seating();
    for (int i = 0; i < num_weights; ++i) {
        if (kind_for(*weights[i], activation, num_rows) != ActivationKind::kTurned) return {};
        if (weights[i]->columns != weights[0]->columns) return {};
    }
    const int64_t each = num_rows / (kLongChunks * seats.num_threads());
    if (seats.has_places || each < kLeastSlice) return {};
    const int64_t most = kSliceBytes / (2 * weights[0]->columns);
    const int64_t size = std::max<int64_t>(1, std::min(each, most) / kSliceRows) * kSliceRows;
    return {size, (num_rows + size - 1) / size};
}

void multiply_slice(const m2_weight* const* weights, int num_weights, const float* x,
                    int64_t first, int64_t num_rows, bool streams_results, float* const* y) {
    thread_local Workspace turned, scratch;
    Activations own =
        make_activations(*weights[0], ActivationKind::kTurned, num_rows, turned);
    turn_alone(own, num_rows, x + first * weights[0]->columns);
    own.streams_results = streams_results;
    const Kernels& run = *best_kernels();
    for (int i = 0; i < num_weights; ++i) {
        const m2_weight& weight = *weights[i];
        const int64_t width = weight.matrices * weight.rows;
        for (int64_t matrix = 0; matrix < weight.matrices; ++matrix) {
            run.matmul(matrix_of(weight, matrix), 0, weight.rows, own, nullptr, num_rows,
                       y[i] + first * width + matrix * weight.rows, width,
                       scratch.get(run.scratch_bytes));
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
            const int64_t first = slice * slices.size;
            multiply_slice(weights, num_weights, x, first,
                           std::min(slices.size, num_rows - first), streams_results, y);
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
        part.x = make_activations(weight, kind, num_rows, workspaces[i]);
        prepare(weight, part.x, num_rows, x);
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
