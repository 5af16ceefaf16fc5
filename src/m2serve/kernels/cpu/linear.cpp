#include "linear.h"

#include <algorithm>
#include <array>

#include "pool.h"
#include "prepared.h"

namespace m2 {
namespace {

constexpr int kMostWeights = 8;
// Rows of a chunk: a multiple of kRowStep, small enough that every thread gets several.
constexpr int64_t kRowStep = 16;
constexpr int64_t kMostRows = 256;
constexpr int64_t kChunksPerThread = 8;

struct Part {
    const m2_weight* weight;
    Activations x;
    float* y;
    int64_t blocks;  // of one matrix
    int64_t width;   // of a row of y

    int64_t chunks() const { return blocks * weight->matrices; }
};

void multiply(const Part& part, int64_t chunk, int64_t block_rows, int64_t num_rows) {
    thread_local Workspace scratch;
    const int64_t matrix = chunk / part.blocks;
    const int64_t n0 = chunk % part.blocks * block_rows;
    const int64_t n1 = std::min(n0 + block_rows, part.weight->rows);
    const Kernels& run = *best_kernels();
    float* y = part.y + matrix * part.weight->rows + n0;
    run.matmul(matrix_of(*part.weight, matrix), n0, n1, part.x, nullptr, num_rows, y, part.width,
               scratch.get(run.scratch_bytes));
}

}  // namespace

int64_t rows_per_chunk(int64_t total_rows) {
    const int64_t chunks = num_threads() * kChunksPerThread;
    const int64_t rows = (total_rows / chunks + kRowStep - 1) / kRowStep * kRowStep;
    return std::clamp(rows, kRowStep, kMostRows);
}

void linears(const m2_weight* const* weights, int num_weights, const float* x, int64_t num_rows,
             float* const* y, m2_activation activation) {
    if (num_rows == 0) return;
    thread_local std::array<Workspace, kMostWeights> workspaces;
    std::array<Part, kMostWeights> parts{};
    const Kernels& run = *best_kernels();
    int64_t total_rows = 0;
    for (int i = 0; i < num_weights; ++i) {
        const m2_weight& weight = *weights[i];
        Part& part = parts[i];
        part.weight = &weight;
        part.y = y[i];
        part.width = weight.matrices * weight.rows;
        total_rows += part.width;
        const Part* same = std::find_if(parts.data(), &part, [&](const Part& earlier) {
            return share_activations(*earlier.weight, weight);
        });
        if (same != &part) {
            part.x = same->x;
            continue;
        }
        const ActivationKind kind = kind_for(weight, activation, num_rows);
        part.x = make_activations(weight, kind, num_rows, workspaces[i]);
        const Matrix any = matrix_of(weight, 0);
        parallel_for(num_rows, [&](int64_t row, int) {
            run.prepare_row(any, part.x, row, x + row * weight.columns);
        });
    }
    const int64_t block_rows = rows_per_chunk(total_rows);
    int64_t chunks = 0;
    for (int i = 0; i < num_weights; ++i) {
        parts[i].blocks = (weights[i]->rows + block_rows - 1) / block_rows;
        chunks += parts[i].chunks();
    }
    parallel_for(chunks, [&](int64_t chunk, int) {
        const Part* part = parts.data();
        for (; chunk >= part->chunks(); ++part) chunk -= part->chunks();
        multiply(*part, chunk, block_rows, num_rows);
    });
}

void linear(const m2_weight& weight, const float* x, int64_t num_rows, float* y,
            m2_activation activation) {
    const m2_weight* const one = &weight;
    linears(&one, 1, x, num_rows, &y, activation);
}

}  // namespace m2
