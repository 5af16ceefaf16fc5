// The product of many rows in integers: int8 activations against integer codes of four or eight bits.
//
// A tile of weights is expanded once, so that a vector holds the same columns of kLanes rows, four
// bytes of each: a lane is a row, nothing is summed across lanes, and what an activation has in
// those columns is one broadcast. Within a group the sums are exact; its two scales, the weight's
// and the activation's, are applied to them in float32.
#pragma once

#include "tile.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kInt8Rows = 2 * kLanes;  // of a tile
constexpr int kInt8Tokens = 3;             // that meet it in registers
constexpr int64_t kInt8Slice = 128;        // tokens whose columns of a tile stay in the second cache
constexpr int64_t kTileSteps = kTileColumns / 2;
constexpr int64_t kMostGroups = kTileColumns / 16;

// Four-bit codes: unsigned bytes, four columns to a lane. The format's zero comes off at the end.
template <int most_code>
struct QuadCodes {
    static constexpr int kColumns = 4;
    // So many sums of two products fit 16 bits.
    static constexpr int kSafeSteps = kQuadsAreWide ? 64 : 32767 / (2 * 127 * most_code);
    static I add(I sum, I w, I x) { return add_quads(sum, w, x); }
    static I finish(I sum) { return finish_quads(sum); }
};
// Eight-bit codes: 16 bits each, two columns to a lane.
struct PairCodes {
    static constexpr int kColumns = 2;
    static constexpr int kSafeSteps = 64;
    static I add(I sum, I w, I x) { return add_pairs(sum, w, x); }
    static I finish(I sum) { return sum; }
};

// Columns lie group after group, not as the nibbles unfold; a step is four bytes.
struct Int8Tile {
    alignas(64) int32_t codes[kTileSteps][kInt8Rows];
    alignas(64) float scale[kMostGroups][kInt8Rows];
    alignas(64) float zero[kMostGroups][kInt8Rows];  // scale times zero point
    alignas(64) float factor[kInt8Rows];
    alignas(64) int32_t rows[kInt8Rows][kTileSteps];
    alignas(64) int32_t x[kInt8Slice][kTileSteps];
};

inline __m128i load16(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
inline void store16(void* to, __m128i value) {
    _mm_storeu_si128(static_cast<__m128i*>(to), value);
}

// kTileColumns bytes, from the order in which nibbles unfold (a unit's even columns, then its odd
// ones) to group after group.
template <int group>
inline void order_groups(const int8_t* from, int8_t* to) {
    for (int64_t unit = 0; unit < kTileColumns; unit += 2 * kBytes) {
        for (int64_t i = 0; i < kBytes; i += 16) {
            const __m128i even = load16(from + unit + i), odd = load16(from + unit + kBytes + i);
            int8_t* pair = to + unit + 2 * i;
            store16(pair, group == 16 ? _mm_unpacklo_epi64(even, odd) : even);
            store16(pair + 16, group == 16 ? _mm_unpackhi_epi64(even, odd) : odd);
        }
    }
}
inline void widen(const int8_t* from, int64_t columns, int16_t* to) {
    for (int64_t k = 0; k < columns; k += 16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k),
                            _mm256_cvtepi8_epi16(load16(from + k)));
    }
}

// Step s of eight rows becomes to[s], for eight steps.
inline void transpose_steps(const int32_t* from, int64_t stride, int32_t* to, int64_t to_stride) {
    __m256i a[8], b[8];
    for (int r = 0; r < 8; ++r) {
        a[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + r * stride));
    }
    for (int r = 0; r < 8; r += 2) {
        b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
        b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
        a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
        a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
        a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (int s = 0; s < 8; ++s) {
        const __m256i step = s < 4 ? _mm256_permute2x128_si256(a[s], a[s + 4], 0x20)
                                   : _mm256_permute2x128_si256(a[s - 4], a[s], 0x31);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + s * to_stride), step);
    }
}
inline void interleave(Int8Tile& tile, int64_t steps) {
    for (int64_t step = 0; step < steps; step += 8) {
        for (int64_t row = 0; row < kInt8Rows; row += 8) {
            transpose_steps(&tile.rows[row][step], kTileSteps, &tile.codes[step][row], kInt8Rows);
        }
    }
}

// T rows of activations against the tile: sums[2 * t + v] of row v * kLanes + lane.
template <class Codes, int group, bool is_scaled, int T>
inline void int8_tile_block(const Int8Tile& tile, int64_t groups, int64_t first,
                            const Int8Activations* x, F* sums) {
    constexpr int kSteps = group / Codes::kColumns;
    constexpr int kAtOnce = kSteps <= Codes::kSafeSteps ? kSteps : kSteps / 2;
    static_assert(kAtOnce <= Codes::kSafeSteps);
    each<2 * T>([&](auto i) { sums[i] = zero(); });
    for (int64_t g = 0; g < groups; ++g) {
        I whole[2 * T];
        each<kSteps / kAtOnce>([&](auto part) {
            I dots[2 * T];
            each<2 * T>([&](auto i) { dots[i] = no_integers(); });
            const int64_t from = g * kSteps + part * kAtOnce;
            for (int64_t step = from; step < from + kAtOnce; ++step) {
                const I low = load_bytes(tile.codes[step]);
                const I high = load_bytes(tile.codes[step] + kLanes);
                each<T>([&](auto t) {
                    const I value = splat_bits(tile.x[first + t][step]);
                    dots[2 * t] = Codes::add(dots[2 * t], low, value);
                    dots[2 * t + 1] = Codes::add(dots[2 * t + 1], high, value);
                });
            }
            each<2 * T>([&](auto i) {
                const I done = Codes::finish(dots[i]);
                whole[i] = part == 0 ? done : add_integers(whole[i], done);
            });
        });
        each<2 * T>([&](auto i) {
            constexpr int t = i / 2, from = i % 2 * kLanes;
            F both = splat(x[t].scale[g]);
            if (is_scaled) {
                both = mul(load(tile.scale[g] + from), both);
                sums[i] = fnma(load(tile.zero[g] + from), splat(x[t].sum[g]), sums[i]);
            }
            sums[i] = fma(integers_to_floats(whole[i]), both, sums[i]);
        });
    }
}

// Tokens first.. of the slice, T at a time, added to c[token * ldc + row]; returns the first left.
template <class Codes, int group, bool is_scaled, int T>
inline int64_t int8_tile_tokens(const Int8Tile& tile, int64_t groups, int64_t rows, int64_t first,
                                int64_t end, const Int8Activations* x, float* c, int64_t ldc) {
    for (; first + T <= end; first += T) {
        F sums[2 * T];
        int8_tile_block<Codes, group, is_scaled, T>(tile, groups, first, x + first, sums);
        each<2 * T>([&](auto i) {
            constexpr int from = i % 2 * kLanes;
            float* to = c + (first + i / 2) * ldc + from;
            const F product = mul(sums[i], load(tile.factor + from));
            if (from + kLanes <= rows) {
                store(to, add(load(to), product));
            } else if (from < rows) {
                float values[kLanes] = {};
                const auto size = static_cast<size_t>(rows - from) * sizeof(float);
                std::memcpy(values, to, size);
                store(values, add(load(values), product));
                std::memcpy(to, values, size);
            }
        });
    }
    return first;
}

// x: the activations of every token of the slice from the tile's first column on.
template <class Codes, int group, bool is_scaled>
inline void int8_tile(const Int8Tile& tile, int64_t columns, int64_t rows, int64_t num_tokens,
                      const Int8Activations* x, float* c, int64_t ldc) {
    const int64_t groups = (columns + group - 1) / group;
    const int64_t next = int8_tile_tokens<Codes, group, is_scaled, kInt8Tokens>(
        tile, groups, rows, 0, num_tokens, x, c, ldc);
    int8_tile_tokens<Codes, group, is_scaled, 1>(tile, groups, rows, next, num_tokens, x, c, ldc);
}

// Columns k0..k1 of a row of four-bit codes: bytes, scales and zero points of row `r` of the tile.
template <class Format>
inline void expand_nibbles(Int8Tile& tile, int64_t r, const Row& row, int64_t k0, int64_t k1) {
    constexpr int kGroup = Format::kGroup;
    int8_t unfolded[kTileColumns];
    int64_t written = 0;
    for (int64_t group = k0 / kGroup; group < k1 / kGroup; group += kLanes) {
        const int64_t left = k1 / kGroup - group;
        const int count = left < kLanes ? static_cast<int>(left) : kLanes;
        const F scale = Format::scales(row, group, count);
        float scales[kLanes], zeros[kLanes];
        store(scales, scale);
        store(zeros, scaled_zeros<Format>(row, group, count, scale, Format::kInt8Zero));
        for (int i = 0; i < count; ++i) {
            tile.scale[group - k0 / kGroup + i][r] = scales[i];
            tile.zero[group - k0 / kGroup + i][r] = zeros[i];
        }
        const uint8_t* codes = row.codes + group * kGroup / 2;
        const int64_t bytes = count * kGroup / 2;
        for (int64_t at = 0; at < bytes; at += kBytes) {
            const I packed = load_unit(codes + at, bytes - at);
            store_bytes(unfolded + written, Format::unsigned_codes(low_nibbles(packed)));
            store_bytes(unfolded + written + kBytes, Format::unsigned_codes(high_nibbles(packed)));
            written += 2 * kBytes;
        }
    }
    std::memset(unfolded + written, 0, static_cast<size_t>(kTileColumns - written));
    order_groups<kGroup>(unfolded, reinterpret_cast<int8_t*>(tile.rows[r]));
}

}  // namespace
}  // namespace m2::M2_ISA
