// The product of many rows of int8 activations and four-bit codes: a tile of interleaved weights is
// expanded once, then kInt8Tokens rows of activations at a time meet two slabs of it in registers.
#pragma once

#include <algorithm>

#include "interleaved.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kInt8Columns = kPad;
constexpr int64_t kTileSteps = kInt8Columns / 4;
constexpr int64_t kMostGroups = kInt8Columns / 16;
constexpr int kTileSlabs = 2;

// A step is four columns, in the order of the activations.
struct Int8Tile {
    alignas(64) int32_t codes[kTileSteps][kTileSlabs][kLanes];
    alignas(64) float scale[kMostGroups][kTileSlabs][kLanes];
    alignas(64) float zero[kMostGroups][kTileSlabs][kLanes];  // scale times zero point, if any
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
        if constexpr (!Slabs::kHasOffset) {
            store(tile.zero[group - g0][s], Slabs::zeros(slab, group, scale));
        }
    }
}

// T rows of activations, from the first group of a tile on.
template <int T>
struct TileTokens {
    const int8_t* values[T];
    const float* scale[T];
    const float* sum[T];
};

// Step `step` of a group against T rows: their sums of products so far, or when as many as fit 16 bits
// are together, whole ones.
template <class Slabs, int T, int step>
inline void int8_tile_step(const int32_t (*codes)[kLanes], const TileTokens<T>& x, I* dots,
                           I* whole) {
    constexpr int kAtOnce = 2 * Slabs::kAtOnce, part = step / kAtOnce;
    constexpr bool begins = step % kAtOnce == 0 && !Slabs::kBeginsWithOffset;
    I w[kTileSlabs];
    each<kTileSlabs>([&](auto s) { w[s] = load_bytes(codes[step * kTileSlabs + s]); });
    each<T>([&](auto t) {
        const I value = quad(x.values[t] + 4 * step);
        each<kTileSlabs>([&](auto s) {
            I& sum = dots[t * kTileSlabs + s];
            sum = begins ? quads_of(w[s], value) : add_quads(sum, w[s], value);
            if (step % kAtOnce != kAtOnce - 1) return;
            I& all = whole[t * kTileSlabs + s];
            all = part == 0 ? finish_quads(sum) : add_integers(all, finish_quads(sum));
        });
    });
}

// T rows of activations against the tile, which begins at group g0: sums[kTileSlabs * t + s].
template <class Format, int T>
inline void int8_tile_block(const Int8Tile& tile, int64_t g0, int64_t groups,
                            const Int8Activations* tokens, F* sums) {
    using Slabs = NibbleSlab<Format>;
    constexpr int kSteps = 2 * Slabs::kVectors;
    TileTokens<T> x;
    each<T>([&](auto t) {
        x.values[t] = tokens[t].values + g0 * Slabs::kGroup;
        x.scale[t] = tokens[t].scale + g0;
        x.sum[t] = tokens[t].sum + g0;
    });
    F acc[kTileSlabs * T];
    each<kTileSlabs * T>([&](auto i) { acc[i] = zero(); });
    const auto* codes = tile.codes[0];
    for (int64_t g = 0; g < groups; ++g, codes += kSteps * kTileSlabs) {
        I dots[kTileSlabs * T], whole[kTileSlabs * T];
        if constexpr (Slabs::kBeginsWithOffset) {
            each<kTileSlabs * T>([&](auto i) { dots[i] = as_bits(splat(*x.sum[i / kTileSlabs])); });
        }
        each<kSteps>([&](auto step) { int8_tile_step<Slabs, T, step>(codes, x, dots, whole); });
        each<T>([&](auto t) {
            const F scale = splat(*x.scale[t]++), excess = splat(*x.sum[t]++);
            x.values[t] += Slabs::kGroup;
            each<kTileSlabs>([&](auto s) {
                F& sum = acc[t * kTileSlabs + s];
                I all = whole[t * kTileSlabs + s];
                constexpr bool is_left = Slabs::kHasOffset && !Slabs::kBeginsWithOffset;
                if constexpr (is_left) all = add_integers(all, as_bits(excess));
                if constexpr (!Slabs::kHasOffset) sum = fnma(load(tile.zero[g][s]), excess, sum);
                sum = fma(integers_to_floats(all), mul(load(tile.scale[g][s]), scale), sum);
            });
        });
    }
    each<kTileSlabs * T>([&](auto i) { sums[i] = acc[i]; });
}

// One tile of one or two slabs: rows from n on, groups from g0 on.
struct TilePlace {
    int64_t n, g0, groups;
    int slabs;
    F factor;
};

// Tokens m..m1, T at a time: what the first columns give is stored, the rest added. Returns the first
// token left. x: the activations of token m on.
template <class Format, int T>
inline int64_t int8_tile_tokens(const Task& task, const Int8Tile& tile, const TilePlace& place,
                                int64_t m, int64_t m1, const Int8Activations* x) {
    for (; m + T <= m1; m += T, x += T) {
        F sums[kTileSlabs * T];
        int8_tile_block<Format, T>(tile, place.g0, place.groups, x, sums);
        each<kTileSlabs * T>([&](auto i) {
            constexpr int t = i / kTileSlabs, s = i % kTileSlabs;
            if (s >= place.slabs) return;
            float* to = task.out(m + t, place.n + s * kLanes);
            const bool adds = place.g0 > 0;
            store(to, adds ? fma(sums[i], place.factor, load(to)) : mul(sums[i], place.factor));
        });
    }
    return m;
}

// Every tile of the task against tokens m0..m1, which stay in the second cache. The columns of a row
// are innermost, so that the weights are read as they lie in memory.
template <class Format>
void int8_tiled_slice(const Task& task, int64_t m0, int64_t m1) {
    constexpr int64_t kGroup = Format::kGroup, kAtOnce = kInt8Columns / kGroup;
    auto& tile = *static_cast<Int8Tile*>(task.scratch);
    Int8Activations x[kTokensAtOnce];
    for (int64_t m = m0; m < m1; ++m) x[m - m0] = int8_activations(task.x, task.token(m));
    const int64_t groups = task.w.columns / kGroup;
    TilePlace place{};
    place.factor = NibbleSlab<Format>::factor(task, task.n0);
    for (place.n = task.n0; place.n < task.n1; place.n += kTileSlabs * kLanes) {
        place.slabs = task.n1 - place.n > kLanes ? kTileSlabs : 1;
        for (place.g0 = 0; place.g0 < groups; place.g0 += kAtOnce) {
            place.groups = std::min(kAtOnce, groups - place.g0);
            for (int s = 0; s < place.slabs; ++s) {
                const Slab slab = slab_of(task.w, place.n + s * kLanes, kGroup);
                expand_slab<Format>(slab, place.g0, place.g0 + place.groups, tile, s);
            }
            // A second slab that is not there is computed from what is left of another, not kept.
            const int64_t m = int8_tile_tokens<Format, kInt8Tokens>(task, tile, place, m0, m1, x);
            each<kInt8Tokens - 1>([&](auto less) {
                if (m1 - m != less + 1) return;
                int8_tile_tokens<Format, less + 1>(task, tile, place, m, m1, x + (m - m0));
            });
        }
    }
}

template <class Format>
void int8_tiled(const Task& task) {
    for_slices(task, [&](int64_t m0, int64_t m1) { int8_tiled_slice<Format>(task, m0, m1); });
}

}  // namespace
}  // namespace m2::M2_ISA
