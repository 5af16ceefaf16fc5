// The product of many rows of int8 activations and four-bit codes: a tile of interleaved weights is
// expanded once, then kInt8Tokens rows of activations at a time meet two slabs of it in registers.
#pragma once

#include "interleaved.h"
#include "tile.h"

namespace m2::M2_ISA {
namespace {

constexpr int kInt8Tokens = 3;
constexpr int64_t kTileSteps = kTileColumns / 4;
constexpr int64_t kMostGroups = kTileColumns / 16;
constexpr int kTileSlabs = 2;

// A step is four columns, in the order of the activations.
struct Int8Tile {
    alignas(64) int32_t codes[kTileSteps][kTileSlabs][kLanes];
    alignas(64) float scale[kMostGroups][kTileSlabs][kLanes];
    alignas(64) float zero[kMostGroups][kTileSlabs][kLanes];  // scale times zero point
};

// Groups g0..g1 of the slab become slab `s` of the tile.
template <class Format>
inline void expand_slab(const Slab& slab, int64_t g0, int64_t g1, Int8Tile& tile, int s) {
    using Slabs = NibbleSlab<Format>;
    for (int64_t group = g0; group < g1; ++group) {
        const uint8_t* from = Slabs::codes(slab, group);
        const int64_t step = (group - g0) * (2 * Slabs::kVectors);
        each<Slabs::kVectors>([&](auto v) {
            const I packed = load_bytes(from + v * kBytes);
            store_bytes(tile.codes[step + 2 * v][s], Format::unsigned_codes(low_nibbles(packed)));
            store_bytes(tile.codes[step + 2 * v + 1][s],
                        Format::unsigned_codes(high_nibbles(packed)));
        });
        const F scale = Slabs::scale(slab, group);
        store(tile.scale[group - g0][s], scale);
        store(tile.zero[group - g0][s], Slabs::zeros(slab, group, scale));
    }
}

// T rows of activations against the tile: sums[kTileSlabs * t + s].
template <class Format, int T>
inline void int8_tile_block(const Int8Tile& tile, int64_t groups, const Int8Activations* x,
                            F* sums) {
    using Slabs = NibbleSlab<Format>;
    constexpr int kSteps = 2 * Slabs::kVectors, kAtOnce = 2 * Slabs::kAtOnce;
    constexpr int kSums = kTileSlabs * T;
    each<kSums>([&](auto i) { sums[i] = zero(); });
    for (int64_t g = 0; g < groups; ++g) {
        I whole[kSums];
        each<kSteps / kAtOnce>([&](auto part) {
            I dots[kSums];
            each<kSums>([&](auto i) { dots[i] = no_integers(); });
            const int64_t from = g * kSteps + part * kAtOnce;
            for (int64_t step = from; step < from + kAtOnce; ++step) {
                const I first = load_bytes(tile.codes[step][0]);
                const I second = load_bytes(tile.codes[step][1]);
                each<T>([&](auto t) {
                    const I value = quad(x[t], step);
                    dots[2 * t] = add_quads(dots[2 * t], first, value);
                    dots[2 * t + 1] = add_quads(dots[2 * t + 1], second, value);
                });
            }
            each<kSums>([&](auto i) {
                const I done = finish_quads(dots[i]);
                whole[i] = part == 0 ? done : add_integers(whole[i], done);
            });
        });
        each<kSums>([&](auto i) {
            constexpr int t = i / kTileSlabs, s = i % kTileSlabs;
            const F both = mul(load(tile.scale[g][s]), splat(x[t].scale[g]));
            sums[i] = fnma(load(tile.zero[g][s]), splat(x[t].sum[g]), sums[i]);
            sums[i] = fma(integers_to_floats(whole[i]), both, sums[i]);
        });
    }
}

// One tile of one or two slabs, from row n on.
struct TileRows {
    int64_t n;
    int slabs;
    F factor;
};

// Tokens m.. of the slice, T at a time, added to the result; returns the first left. x: their
// activations from the tile's first column on.
template <class Format, int T>
inline int64_t int8_tile_tokens(const Task& task, const Int8Tile& tile, const TileRows& rows,
                                int64_t groups, int64_t m, int64_t m1, const Int8Activations* x) {
    for (; m + T <= m1; m += T, x += T) {
        F sums[kTileSlabs * T];
        int8_tile_block<Format, T>(tile, groups, x, sums);
        each<kTileSlabs * T>([&](auto i) {
            constexpr int t = i / kTileSlabs, s = i % kTileSlabs;
            if (s >= rows.slabs) return;
            float* to = task.out(m + t, rows.n + s * kLanes);
            store(to, fma(sums[i], rows.factor, load(to)));
        });
    }
    return m;
}

// Every tile of the task against tokens m0..m1, whose columns of one tile stay in the second cache.
template <class Format>
void int8_tiled_slice(const Task& task, int64_t m0, int64_t m1, Int8Activations* x) {
    constexpr int kGroup = Format::kGroup;
    auto& tile = *static_cast<Int8Tile*>(task.scratch);
    const F factor = NibbleSlab<Format>::factor(task, task.n0);
    for (int64_t k0 = 0; k0 < task.w.columns; k0 += kTileColumns) {
        const int64_t left = task.w.columns - k0;
        const int64_t g0 = k0 / kGroup, g1 = g0 + (left < kTileColumns ? left : kTileColumns) / kGroup;
        for (int64_t m = m0; m < m1; ++m) {
            const Int8Activations whole = int8_activations(task.x, task.token(m));
            x[m - m0] = {whole.values + k0, whole.scale + g0, whole.sum + g0};
        }
        for (int64_t n = task.n0; n < task.n1; n += kTileSlabs * kLanes) {
            const TileRows rows{n, task.n1 - n > kLanes ? kTileSlabs : 1, factor};
            for (int s = 0; s < rows.slabs; ++s) {
                expand_slab<Format>(slab_of(task.w, n + s * kLanes, kGroup), g0, g1, tile, s);
            }
            // A second slab that is not there is computed from what is left of another, not kept.
            const int64_t m =
                int8_tile_tokens<Format, kInt8Tokens>(task, tile, rows, g1 - g0, m0, m1, x);
            int8_tile_tokens<Format, 1>(task, tile, rows, g1 - g0, m, m1, x + (m - m0));
        }
    }
}

template <class Format>
void int8_tiled(const Task& task) {
    Int8Activations x[kTokensAtOnce];
    for_slices(task, [&](int64_t m0, int64_t m1) { int8_tiled_slice<Format>(task, m0, m1, x); });
}

}  // namespace
}  // namespace m2::M2_ISA
