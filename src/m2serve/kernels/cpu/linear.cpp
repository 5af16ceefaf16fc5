#include "linear.h"

#include <algorithm>
#include <array>

#include "pool.h"
#include "prepared.h"

namespace m2 {
namespace {

constexpr int kMostWeights = 8;

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

}  // namespace

void linears(const m2_weight* const* weights, int num_weights, const float* x, int64_t num_rows,
             float* const* y, m2_activation activation) {
    if (num_rows == 0) return;
    thread_local std::array<Workspace, kMostWeights> workspaces;
    std::array<Part, kMostWeights> parts{};
    int64_t total_rows = 0;
    for (int i = 0; i < num_weights; ++i) {
        const m2_weight& weight = *weights[i];
        Part& part = parts[i];
        part.weight = &weight;
        part.y = y[i];
        part.width = weight.matrices * weight.rows;
        total_rows += part.width;
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
    }
    const Seating& seats = seating();
    int64_t least = kLeastRows;
    for (int i = 0; i < num_weights; ++i) least = std::max(least, least_rows(*weights[i]));
    const int64_t block = rows_per_chunk(total_rows, seats.num_threads(), least);
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
