// The product of many rows in the tile registers of AMX: bfloat16 activations in the order of the
// columns against weights of any format, which become bfloat16 a panel at a time. The rows of
// activations a task names follow one another, and behind the last there is memory for a whole tile.
// What a panel gives is added to the results in memory.
#pragma once

#include "tiles_stored.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kPanelColumns = 512;  // both slabs of a panel stay in the first cache
constexpr int64_t kPanelSteps = kPanelColumns / kRegisterColumns;
constexpr int64_t kSliceTokens = 512;  // whose columns of a panel stay in the second

struct TileScratch {
    alignas(64) ExpandedStep weights[2][kPanelSteps];
    TileSums sums[kSlicePairs];  // panels need the first one only
};

// The panel behind that of rows n and columns k: those below, else those to the right, else those of
// the first of the tokens' next slice, or of the matrix that comes next.
inline Ahead panel_behind(const Task& task, int64_t n, int64_t k, bool is_last_slice) {
    const Matrix& w = task.w;
    if (n + 2 * kLanes < task.n1) {
        n += 2 * kLanes;
    } else {
        n = task.n0;
        k += kPanelColumns;
    }
    const uint8_t* codes = w.row(n);
    if (k >= w.columns) {
        k = 0;
        if (is_last_slice) codes = w.next.at;
    }
    Ahead ahead;
    if (codes && w.columns > 0) {
        const int64_t rows = std::min<int64_t>(2 * kLanes, task.n1 - n);
        const int64_t together = w.interleaved ? kLanes : 1;  // rows in one piece
        const int64_t stride = together * w.code_stride;
        const auto bytes = [&](int64_t columns) { return columns * stride / w.columns; };
        ahead.add(codes + bytes(k), rows / together, bytes(std::min(kPanelColumns, w.columns - k)),
                  stride);
    }
    return ahead;
}

// What becomes of the sums of a panel: added to those of the panels before, the last one scaled; or
// scaled and added to where the task adds.
struct Finish {
    bool is_first, is_last;
};
inline void add_tile(const Task& task, int64_t m, int64_t m1, int64_t n, const Finish& finish,
                     const float (*sums)[kLanes]) {
    const int64_t rows = std::min<int64_t>(kLanes, task.n1 - n);
    const auto there = static_cast<__mmask16>((1u << rows) - 1);
    if (task.add.factors) {
        const F factor = tile_factor(task, n);
        F results[kRegisterRows];
        for (int i = 0; i < kRegisterRows; ++i) results[i] = mul(load(sums[i]), factor);
        return add_results(task, m, std::min(kRegisterRows, m1 - m), n, there, results);
    }
    const F factor = finish.is_last ? tile_factor(task, n) : zero();
    for (int64_t i = 0; i < kRegisterRows && m + i < m1; ++i) {
        float* to = task.out(m + i, n);
        F sum = load(sums[i]);
        if (!finish.is_first) sum = add(sum, _mm512_maskz_loadu_ps(there, to));
        _mm512_mask_storeu_ps(to, there, finish.is_last ? mul(sum, factor) : sum);
    }
}

template <class Tiles>
void panel(const Task& task, int64_t m0, int64_t m1, int64_t k, TileScratch& scratch) {
    const int64_t steps = steps_of(std::min(kPanelColumns, task.w.columns - k));
    const Finish finish{k == 0, k + kPanelColumns >= task.w.columns};
    for (int64_t n = task.n0; n < task.n1; n += 2 * kLanes) {
        const int num_slabs = n + kLanes < task.n1 ? 2 : 1;
        for (int s = 0; s < num_slabs; ++s) {
            expand_steps<Tiles>(task, n + s * kLanes, k, steps, scratch.weights[s]);
        }
        Ahead ahead = panel_behind(task, n, k, m1 == task.num_tokens);
        const int64_t lines = ahead.lines_a_step(steps * block_pairs(m1 - m0));
        for (int64_t m = m0; m < m1; m += 2 * kRegisterRows) {
            const int num_blocks = m + kRegisterRows < m1 ? 2 : 1;
            const TileFactors factors =
                activations_against(task, m, k, scratch.weights[0], scratch.weights[1], steps);
            tile_products(num_blocks, num_slabs, factors, scratch.sums[0],
                          [&] { ahead.ask(lines); });
            for (int t = 0; t < num_blocks; ++t) {
                for (int s = 0; s < num_slabs; ++s) {
                    add_tile(task, m + t * kRegisterRows, m1, n + s * kLanes, finish,
                             scratch.sums[0].of[t][s]);
                }
            }
        }
    }
}

void tiled_matmul(const Task& task) {
    auto& scratch = *static_cast<TileScratch*>(task.scratch);
    const TileRegisters registers;
    if (task.x.kind == ActivationKind::kTurned) return stored_matmul(task, scratch.sums);
    with_tiles(task.w, [&](auto tiles) {
        for (int64_t m0 = 0; m0 < task.num_tokens; m0 += kSliceTokens) {
            const int64_t m1 = std::min(task.num_tokens, m0 + kSliceTokens);
            int64_t k = 0;
            do {  // once also for no columns at all: the sums are 0 then
                panel<decltype(tiles)>(task, m0, m1, k, scratch);
                k += kPanelColumns;
            } while (k < task.w.columns);
        }
    });
}

}  // namespace
}  // namespace m2::M2_ISA
