// One or two blocks of 16 rows of activations against one or two slabs of 16 rows of weights that were
// expanded before: two by two tiles of results stay in registers while the columns pass.
#pragma once

#include "tiles_ahead.h"
#include "tiles_expand.h"

namespace m2::M2_ISA {
namespace {

using ExpandedStep = I[kRegisterPairs];  // 16 rows by 32 columns

struct TileFactors {
    const uint8_t* x;  // whose rows are `stride` bytes apart
    int64_t stride;
    const ExpandedStep* weights[2];  // of either slab
    int64_t steps;
};
struct alignas(64) TileSums {
    float of[2][2][kRegisterRows][kLanes];  // [block, slab, token, row]
};

template <int num_blocks, int num_slabs>
inline void tile_product(const TileFactors& factors, TileSums& sums, Ahead& ahead, int64_t lines) {
    const auto [x, stride, weights, steps] = factors;
    const uint8_t* second = x + kRegisterRows * stride;
    finish_stores();
    _tile_zero(0);
    if constexpr (num_slabs == 2) _tile_zero(1);
    if constexpr (num_blocks == 2) _tile_zero(2);
    if constexpr (num_blocks == 2 && num_slabs == 2) _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s) {
        ahead.ask(lines);
        _tile_loadd(6, weights[0][s], kBytes);
        _tile_loadd(4, x + s * kBytes, stride);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (num_slabs == 2) {
            _tile_loadd(7, weights[1][s], kBytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (num_blocks == 2) {
            _tile_loadd(5, second + s * kBytes, stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (num_blocks == 2 && num_slabs == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums.of[0][0], kBytes);
    if constexpr (num_slabs == 2) _tile_stored(1, sums.of[0][1], kBytes);
    if constexpr (num_blocks == 2) _tile_stored(2, sums.of[1][0], kBytes);
    if constexpr (num_blocks == 2 && num_slabs == 2) _tile_stored(3, sums.of[1][1], kBytes);
}

inline auto tile_product_of(int num_blocks, int num_slabs) {
    if (num_slabs == 2) return num_blocks == 2 ? tile_product<2, 2> : tile_product<1, 2>;
    return num_blocks == 2 ? tile_product<2, 1> : tile_product<1, 1>;
}

inline const uint8_t* tile_activations(const Task& task, int64_t m, int64_t k) {
    const auto* values = static_cast<const uint16_t*>(task.x.values);
    return reinterpret_cast<const uint8_t*>(values + task.token(m) * task.x.padded + k);
}

// Steps of the registers for so many columns.
inline int64_t steps_of(int64_t columns) {
    return (columns + kRegisterColumns - 1) / kRegisterColumns;
}
// Pairs of blocks of so many tokens.
inline int64_t block_pairs(int64_t tokens) {
    return (tokens + 2 * kRegisterRows - 1) / (2 * kRegisterRows);
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
