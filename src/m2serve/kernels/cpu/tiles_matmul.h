// The product of many rows in the tile registers of AMX: bfloat16 activations in the order of the
// columns against weights of any format, which become bfloat16 a panel at a time. The rows of
// activations a task names follow one another, and behind the last there is memory for a whole tile.
//
// Two by two tiles of results stay in registers while the columns of a panel pass; what a panel
// gives is added to the results in memory.
#pragma once

#include "tiles_expand.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kPanelColumns = 512;  // both slabs of a panel stay in the first cache
constexpr int64_t kPanelSteps = kPanelColumns / kRegisterColumns;
constexpr int64_t kSliceTokens = 512;  // whose columns of a panel stay in the second

// Weights that will be expanded next, to be asked for a few lines at a time while the registers
// multiply: `rows` pieces of `lines` cache lines, `stride` bytes apart.
class Ahead {
  public:
    Ahead(const uint8_t* first, int64_t rows, int64_t bytes, int64_t stride)
        : at_(first), lines_((bytes + kBytes - 1) / kBytes), left_in_row_(lines_),
          left_(rows * lines_), skip_(stride - lines_ * kBytes) {}

    int64_t left() const { return left_; }
    // Into the second cache; the first is full of what is multiplied now.
    void ask(int64_t count) {
        for (; count > 0 && left_ > 0; --count, --left_) {
            __builtin_prefetch(at_, 0, 2);
            at_ += kBytes;
            if (--left_in_row_ == 0) {
                at_ += skip_;
                left_in_row_ = lines_;
            }
        }
    }

  private:
    const uint8_t* at_;
    int64_t lines_, left_in_row_, left_, skip_;
};

// The panel behind that of rows n and columns k: those below, else those to the right, else those of
// the matrix that comes next.
inline Ahead panel_behind(const Task& task, int64_t n, int64_t k) {
    const Matrix& w = task.w;
    const uint8_t* codes = w.codes;
    if (n + 2 * kLanes < task.n1) {
        n += 2 * kLanes;
    } else {
        n = task.n0;
        k += kPanelColumns;
        if (k >= w.columns) {
            k = 0;
            codes = w.next_codes;
        }
    }
    if (!codes) return {nullptr, 0, 0, 0};
    const int64_t rows = std::min<int64_t>(2 * kLanes, task.n1 - n);
    const int64_t columns = std::min(kPanelColumns, w.columns - k);
    const int64_t together = w.interleaved ? kLanes : 1;  // rows in one piece
    const int64_t stride = together * w.code_stride;
    const auto bytes = [&](int64_t of) { return of * stride / w.columns; };
    return {codes + n / together * stride + bytes(k), rows / together, bytes(columns), stride};
}

struct TileScratch {
    alignas(64) I weights[2][kPanelSteps][kRegisterPairs];
    alignas(64) float sums[2][2][kRegisterRows][kLanes];  // [tokens, rows, token, row]
};

// One or two blocks of 16 tokens, whose rows are `stride` bytes apart, against one or two slabs.
template <int num_blocks, int num_slabs>
inline void tile_product(const uint8_t* x, int64_t stride, int64_t steps, TileScratch& scratch,
                         Ahead& ahead, int64_t lines_a_step) {
    const uint8_t* second = x + kRegisterRows * stride;
    finish_stores();
    _tile_zero(0);
    if constexpr (num_slabs == 2) _tile_zero(1);
    if constexpr (num_blocks == 2) _tile_zero(2);
    if constexpr (num_blocks == 2 && num_slabs == 2) _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s) {
        ahead.ask(lines_a_step);
        _tile_loadd(6, scratch.weights[0][s], kBytes);
        _tile_loadd(4, x + s * kBytes, stride);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (num_slabs == 2) {
            _tile_loadd(7, scratch.weights[1][s], kBytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (num_blocks == 2) {
            _tile_loadd(5, second + s * kBytes, stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (num_blocks == 2 && num_slabs == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, scratch.sums[0][0], kBytes);
    if constexpr (num_slabs == 2) _tile_stored(1, scratch.sums[0][1], kBytes);
    if constexpr (num_blocks == 2) _tile_stored(2, scratch.sums[1][0], kBytes);
    if constexpr (num_blocks == 2 && num_slabs == 2) _tile_stored(3, scratch.sums[1][1], kBytes);
}

inline auto tile_product_of(int num_blocks, int num_slabs) {
    if (num_slabs == 2) return num_blocks == 2 ? tile_product<2, 2> : tile_product<1, 2>;
    return num_blocks == 2 ? tile_product<2, 1> : tile_product<1, 1>;
}

inline const uint8_t* tile_activations(const Task& task, int64_t m, int64_t k) {
    const auto* values = static_cast<const uint16_t*>(task.x.values);
    return reinterpret_cast<const uint8_t*>(values + task.token(m) * task.x.padded + k);
}

// What becomes of the sums of a panel: added to those of the panels before, the last one scaled.
struct Finish {
    bool is_first, is_last;
};
inline void add_tile(const Task& task, int64_t m, int64_t m1, int64_t n, const Finish& finish,
                     const float (*sums)[kLanes]) {
    const F factor = finish.is_last ? tile_factor(task, n) : zero();
    const int64_t rows = std::min<int64_t>(kLanes, task.n1 - n);
    const auto there = static_cast<__mmask16>((1u << rows) - 1);
    for (int64_t i = 0; i < kRegisterRows && m + i < m1; ++i) {
        float* to = task.out(m + i, n);
        F sum = load(sums[i]);
        if (!finish.is_first) sum = add(sum, _mm512_maskz_loadu_ps(there, to));
        _mm512_mask_storeu_ps(to, there, finish.is_last ? mul(sum, factor) : sum);
    }
}

template <class Tiles>
void panel(const Task& task, int64_t m0, int64_t m1, int64_t k, TileScratch& scratch) {
    const int64_t columns = std::min(kPanelColumns, task.w.columns - k);
    const int64_t steps = (columns + kRegisterColumns - 1) / kRegisterColumns;
    const Finish finish{k == 0, k + kPanelColumns >= task.w.columns};
    for (int64_t n = task.n0; n < task.n1; n += 2 * kLanes) {
        const int num_slabs = n + kLanes < task.n1 ? 2 : 1;
        for (int s = 0; s < num_slabs; ++s) {
            for (int64_t step = 0; step < steps; ++step) {
                Tiles::expand(task, n + s * kLanes, k + step * kRegisterColumns,
                              scratch.weights[s][step]);
            }
        }
        Ahead ahead = panel_behind(task, n, k);
        const int64_t all_steps = steps * ((m1 - m0 + 2 * kRegisterRows - 1) / (2 * kRegisterRows));
        const int64_t lines_a_step = (ahead.left() + all_steps - 1) / std::max<int64_t>(1, all_steps);
        for (int64_t m = m0; m < m1; m += 2 * kRegisterRows) {
            const int num_blocks = m + kRegisterRows < m1 ? 2 : 1;
            tile_product_of(num_blocks, num_slabs)(tile_activations(task, m, k),
                                                   task.x.padded * 2, steps, scratch, ahead,
                                                   lines_a_step);
            for (int t = 0; t < num_blocks; ++t) {
                for (int s = 0; s < num_slabs; ++s) {
                    add_tile(task, m + t * kRegisterRows, m1, n + s * kLanes, finish,
                             scratch.sums[t][s]);
                }
            }
        }
    }
}

template <class Tiles>
void tiles(const Task& task) {
    auto& scratch = *static_cast<TileScratch*>(task.scratch);
    const TileRegisters registers;
    for (int64_t m0 = 0; m0 < task.num_tokens; m0 += kSliceTokens) {
        const int64_t m1 = std::min(task.num_tokens, m0 + kSliceTokens);
        int64_t k = 0;
        do {  // once also for no columns at all: the sums are 0 then
            panel<Tiles>(task, m0, m1, k, scratch);
            k += kPanelColumns;
        } while (k < task.w.columns);
    }
}

template <class Format>
void four_bit_tiles(const Task& task) {
    return task.w.interleaved ? tiles<NibbleTiles<Format>>(task)
                              : tiles<RowTiles<NibbleRow<Format>>>(task);
}
template <int kind>
void int4_tiles(const Task& task) {
    return task.w.zero_point ? four_bit_tiles<Int4<kind, true>>(task)
                             : four_bit_tiles<Int4<kind, false>>(task);
}

void tiled_matmul(const Task& task) {
    switch (task.w.format) {
        case M2_BF16: return tiles<RowTiles<Bf16Row>>(task);
        case M2_F16: return tiles<RowTiles<F16Row>>(task);
        case M2_FP8_BLOCK: return tiles<RowTiles<Fp8Row>>(task);
        case M2_NVFP4: return four_bit_tiles<Nvfp4>(task);
        case M2_MXFP4: return four_bit_tiles<Mxfp4>(task);
        case M2_INT4:
            if (task.w.scale_type == M2_BF16) return int4_tiles<M2_BF16>(task);
            return task.w.scale_type == M2_F16 ? int4_tiles<M2_F16>(task)
                                               : int4_tiles<M2_F32>(task);
        case M2_INT8:
            return task.w.interleaved ? tiles<ByteTiles>(task) : tiles<RowTiles<Int8Row>>(task);
        default: return;  // float32 meets float activations only
    }
}

}  // namespace
}  // namespace m2::M2_ISA
