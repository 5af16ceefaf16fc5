// One or two blocks of 16 rows as they lie in memory against one or two slabs of 16 rows that were
// turned before: two by two tiles of results stay in registers while the columns pass. The turned
// ones are weights, which are expanded on the way, or the activations of BF16 weights
// (tiles_stored.h).
#pragma once

#include "tiles_ahead.h"
#include "tiles_expand.h"

namespace m2::M2_ISA {
namespace {

using ExpandedStep = I[kRegisterPairs];  // 16 rows by 32 columns

struct TileFactors {
    const uint8_t* rows[2];  // of either block, `stride` bytes apart
    int64_t stride;
    const ExpandedStep* turned[2];  // of either slab
    int64_t steps;
    bool adds = false;  // to what the sums are
};
struct alignas(64) TileSums {
    float of[2][2][kRegisterRows][kLanes];  // [block, slab, its row, its row]
};

// ask() once before every step.
template <int num_blocks, int num_slabs, class Ask>
inline void tile_product(const TileFactors& factors, TileSums& sums, const Ask& ask) {
    const auto [rows, stride, turned, steps, adds] = factors;
    finish_stores();
    if (adds) {
        _tile_loadd(0, sums.of[0][0], kBytes);
        if constexpr (num_slabs == 2) _tile_loadd(1, sums.of[0][1], kBytes);
        if constexpr (num_blocks == 2) _tile_loadd(2, sums.of[1][0], kBytes);
        if constexpr (num_blocks == 2 && num_slabs == 2) _tile_loadd(3, sums.of[1][1], kBytes);
    } else {
        _tile_zero(0);
        if constexpr (num_slabs == 2) _tile_zero(1);
        if constexpr (num_blocks == 2) _tile_zero(2);
        if constexpr (num_blocks == 2 && num_slabs == 2) _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; ++s) {
        ask();
        _tile_loadd(6, turned[0][s], kBytes);
        _tile_loadd(4, rows[0] + s * kBytes, stride);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (num_slabs == 2) {
            _tile_loadd(7, turned[1][s], kBytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (num_blocks == 2) {
            _tile_loadd(5, rows[1] + s * kBytes, stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (num_blocks == 2 && num_slabs == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums.of[0][0], kBytes);
    if constexpr (num_slabs == 2) _tile_stored(1, sums.of[0][1], kBytes);
    if constexpr (num_blocks == 2) _tile_stored(2, sums.of[1][0], kBytes);
    if constexpr (num_blocks == 2 && num_slabs == 2) _tile_stored(3, sums.of[1][1], kBytes);
}

template <class Ask>
inline void tile_products(int num_blocks, int num_slabs, const TileFactors& factors,
                          TileSums& sums, const Ask& ask) {
    if (num_slabs == 2) {
        return num_blocks == 2 ? tile_product<2, 2>(factors, sums, ask)
                               : tile_product<1, 2>(factors, sums, ask);
    }
    return num_blocks == 2 ? tile_product<2, 1>(factors, sums, ask)
                           : tile_product<1, 1>(factors, sums, ask);
}

// Results of `count` rows of activations from m on, from row n of the weights on, to where the task
// adds them.
inline void add_results(const Task& task, int64_t m, int64_t count, int64_t n, __mmask16 wanted,
                        const F* results) {
    const AddTo& add = task.add;
    for (int64_t i = m; i < m + count; ++i) {
        float* to = add.y + add.rows[i] * add.stride + (n - task.n0);
        const F sum = fma(results[i - m], splat(add.factors[i]), _mm512_maskz_loadu_ps(wanted, to));
        _mm512_mask_storeu_ps(to, wanted, sum);
    }
}

inline const uint8_t* tile_activations(const Task& task, int64_t m, int64_t k) {
    const auto* values = static_cast<const uint16_t*>(task.x.values);
    return reinterpret_cast<const uint8_t*>(values + task.token(m) * task.x.padded + k);
}

// Rows of activations from m on against slabs of weights.
inline TileFactors activations_against(const Task& task, int64_t m, int64_t k,
                                       const ExpandedStep* first, const ExpandedStep* second,
                                       int64_t steps) {
    const uint8_t* x = tile_activations(task, m, k);
    const int64_t stride = task.x.padded * 2;
    return {{x, x + kRegisterRows * stride}, stride, {first, second}, steps};
}

// Steps of the registers for so many columns.
inline int64_t steps_of(int64_t columns) {
    return (columns + kRegisterColumns - 1) / kRegisterColumns;
}
// Pairs of blocks of so many tokens.
inline int64_t block_pairs(int64_t tokens) {
    return (tokens + 2 * kRegisterRows - 1) / (2 * kRegisterRows);
}

constexpr int64_t kSlicePairs = 16;  // of blocks, at most

// Tokens of a slice: whole pairs of blocks.
inline int64_t slice_tokens(int64_t columns) {
    const int64_t tokens = kSliceBytes / (2 * std::max<int64_t>(1, columns));
    return std::clamp<int64_t>(tokens / (2 * kRegisterRows), 1, kSlicePairs) * 2 * kRegisterRows;
}

template <class Tiles>
inline void expand_steps(const Task& task, int64_t n, int64_t k, int64_t steps, ExpandedStep* to) {
    for (int64_t s = 0; s < steps; ++s) Tiles::expand(task, n, k + s * kRegisterColumns, to[s]);
}

// Calls run with the Tiles that expand weights of this format.
template <class Run>
inline void with_tiles(const Matrix& w, const Run& run) {
    const auto four_bits = [&](auto format) {
        using Format = decltype(format);
        w.interleaved ? run(NibbleTiles<Format>{}) : run(RowTiles<NibbleRow<Format>>{});
    };
    const auto int4 = [&](auto kind) {
        w.zero_point ? four_bits(Int4<kind, true>{}) : four_bits(Int4<kind, false>{});
    };
    switch (w.format) {
        case M2_BF16: return run(RowTiles<Bf16Row>{});
        case M2_F16: return run(RowTiles<F16Row>{});
        case M2_FP8_BLOCK: return run(RowTiles<Fp8Row>{});
        case M2_NVFP4: return four_bits(Nvfp4{});
        case M2_MXFP4: return four_bits(Mxfp4{});
        case M2_INT4:
            if (w.scale_type == M2_BF16) return int4(std::integral_constant<int, M2_BF16>{});
            return w.scale_type == M2_F16 ? int4(std::integral_constant<int, M2_F16>{})
                                          : int4(std::integral_constant<int, M2_F32>{});
        case M2_INT8:
            return w.interleaved ? run(ByteTiles{}) : run(RowTiles<Int8Row>{});
        default: return;  // float32 meets float activations only
    }
}

}  // namespace
}  // namespace m2::M2_ISA
