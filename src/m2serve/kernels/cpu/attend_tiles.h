// Attention of a prompt's tokens in the tile registers of AMX: queries, keys, weights and values in
// bfloat16, sums and the online softmax in float32. Row by row as attend.h: what a row gives does
// not depend on the rows beside it, as long as all values of a tile are finite. One that is not
// spoils the rows of its own sequence that share the tile, also those that do not see it: a weight
// of 0 does not help there, and the request fails.
#pragma once

#include <algorithm>

#include "attend.h"
#include "tiles.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kKeyTiles = kTileKeys / kRegisterRows;         // of 16 keys
constexpr int64_t kValueTiles = kTileKeys / kRegisterColumns;    // of 32 keys

// Keys and values of one tile of keys, and 16 rows of what is computed with them.
struct TileAttention {
    uint8_t* queries;  // bfloat16 [rows, padded]
    I* keys;           // [padded / 32, kKeyTiles, kRegisterPairs]: two dims of 16 keys
    I* values;         // [kValueTiles, padded / 16, kRegisterPairs]: two keys' 16 dims
    float* out;        // [16, padded]
    float* scores;     // [16, kTileKeys]
    uint8_t* weights;  // bfloat16 [16, kTileKeys]
    float *key_scales, *value_scales;  // [kTileKeys], INT8
};
inline int64_t whole_tiles(int64_t rows) {
    return (rows + kRegisterRows - 1) / kRegisterRows * kRegisterRows;
}
inline TileAttention tile_attention(void* memory, int64_t rows, int64_t padded) {
    auto* at = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    const auto take = [&](int64_t bytes) {
        uint8_t* from = at;
        at += bytes;
        return from;
    };
    TileAttention all{};
    all.queries = take(whole_tiles(rows) * padded * 2);
    all.keys = reinterpret_cast<I*>(take(padded * kTileKeys * 2));
    all.values = reinterpret_cast<I*>(take(padded * kTileKeys * 2));
    all.out = reinterpret_cast<float*>(take(kRegisterRows * padded * 4));
    all.scores = reinterpret_cast<float*>(take(kRegisterRows * kTileKeys * 4));
    all.weights = take(kRegisterRows * kTileKeys * 2);
    all.key_scales = reinterpret_cast<float*>(take(kTileKeys * 4));
    all.value_scales = reinterpret_cast<float*>(take(kTileKeys * 4));
    return all;
}
int64_t tile_attention_bytes(int64_t rows, int64_t head_dim) {
    const int64_t padded = padded_head(head_dim);
    return 64 + whole_tiles(rows) * padded * 2 + 2 * padded * kTileKeys * 2 +
           kRegisterRows * padded * 4 + kRegisterRows * kTileKeys * 6 + kTileKeys * 8;
}

inline void round_queries(const QueryRows& rows, int64_t padded, uint8_t* to) {
    for (int64_t r = 0; r < whole_tiles(rows.count()); ++r) {
        for (int64_t d = 0; d < padded; d += kRegisterColumns) {
            const float* from = rows.q + r * padded + d;
            const I both = r < rows.count() ? row_of_floats(load(from), load(from + kLanes))
                                            : no_integers();
            store_bytes(to + (r * padded + d) * 2, both);
        }
    }
}

// 16 keys, whose vectors are turned about: a lane is a key.
template <int32_t format>
inline void turn_key_tile(const HeadVectors& keys, const int64_t* places, int64_t key_tile,
                          I* tiles) {
    constexpr int64_t kDims = kBytes / kv_element_bytes(format);  // of a vector
    for (int64_t b = 0; b < keys.bytes; b += kBytes) {
        F square[kLanes];
        each<kLanes>([&](auto j) {
            square[j] = as_float(load_unit(keys.at(places[j]) + b, keys.bytes - b));
        });
        transpose(square);
        const int64_t first = b / kBytes * (kDims / kRegisterColumns);
        each<kLanes>([&](auto i) {
            const I raw = as_bits(square[i]);
            if constexpr (format == M2_KV_BF16) {
                tiles[(first * kKeyTiles + key_tile) * kRegisterPairs + i] = raw;
            } else {  // four dims of every key
                constexpr int64_t kHalf = kRegisterPairs / 2;
                constexpr int64_t tile = i / kHalf, pair = i % kHalf * 2;
                I* to = tiles + ((first + tile) * kKeyTiles + key_tile) * kRegisterPairs + pair;
                to[0] = pairs_of(kv_part<format, 0>(raw), kv_part<format, 1>(raw));
                to[1] = pairs_of(kv_part<format, 2>(raw), kv_part<format, 3>(raw));
            }
        });
    }
}

// Two keys' values: those of 16 dims, in the order of a row of acc (attend.h).
template <int32_t format>
inline void pair_values(const HeadVectors& values, const uint8_t* first, const uint8_t* second,
                        int64_t stride, I* to) {
    for (int64_t b = 0; b < values.bytes; b += kBytes) {
        const I one = load_unit(first + b, values.bytes - b);
        const I other = load_unit(second + b, values.bytes - b);
        each<kParts<format>>([&](auto part) {
            to[(b / kBytes * kParts<format> + part) * stride] =
                pairs_of(kv_part<format, part>(one), kv_part<format, part>(other));
        });
    }
}

template <int32_t format>
inline void fill_tiles(const Tile& tile, int64_t padded, const TileAttention& work) {
    const HeadVectors keys(tile.cache, tile.cache.keys);
    const HeadVectors values(tile.cache, tile.cache.values);
    for (int64_t j = 0; j < tile.count; j += kRegisterRows) {
        turn_key_tile<format>(keys, tile.places + j, j / kRegisterRows, work.keys);
    }
    if constexpr (format == M2_KV_INT8) {
        for (int64_t j = 0; j < kTileKeys; ++j) {
            const int64_t place = tile.places[j < tile.count ? j : 0];
            work.key_scales[j] = tile.cache.key_scales[place];
            work.value_scales[j] = tile.cache.value_scales[place];
        }
    }
    const int64_t dim_tiles = padded / kLanes;
    for (int64_t j = 0; j < tile.count; j += kRegisterColumns) {
        I* to = work.values + j / kRegisterColumns * dim_tiles * kRegisterPairs;
        for (int64_t pair = 0; pair < kRegisterPairs; ++pair) {
            const int64_t* places = tile.places + j + 2 * pair;
            pair_values<format>(values, values.at(places[0]), values.at(places[1]), kRegisterPairs,
                                to + pair);
        }
    }
}

// Four tiles of results side by side: rows [16, 4 * 16] of a product over `steps` tiles. Tile s of
// the left side is at left + s * 64, of the right ones at right + s * right_step, side by side.
inline void four_tiles(const uint8_t* left, int64_t left_stride, const I* right,
                       int64_t right_step, int64_t steps, float* to, int64_t to_stride) {
    finish_stores();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s, right += right_step) {
        _tile_loadd(4, left + s * kBytes, left_stride);
        _tile_loadd(5, right, kBytes);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, right + kRegisterPairs, kBytes);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, right + 2 * kRegisterPairs, kBytes);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, right + 3 * kRegisterPairs, kBytes);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, to, to_stride);
    _tile_stored(1, to + kLanes, to_stride);
    _tile_stored(2, to + 2 * kLanes, to_stride);
    _tile_stored(3, to + 3 * kLanes, to_stride);
}

// 2 to the power of values up to 0, and 0 of those whose power is subnormal; NaN stays. Off by 3e-6
// of it at most (a minimax polynomial over [0, 1]), where bfloat16 is off by 4e-3.
inline F power_of_two(F value) {
    const F part = _mm512_reduce_ps(value, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    F p = splat(0.01353416033089161f);
    p = fma(p, part, splat(0.05201147496700287f));
    p = fma(p, part, splat(0.2414427548646927f));
    p = fma(p, part, splat(0.6930038332939148f));
    p = fma(p, part, splat(1.0000026226043701f));
    const __mmask16 is_normal = _mm512_cmp_ps_mask(value, splat(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(is_normal, p, value);
}

// Lane i: all lanes of vector i.
template <class Both>
inline F across(F (&v)[kLanes], const Both& both) {
    transpose(v);
    for (int step = kLanes / 2; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) v[i] = both(v[i], v[i + step]);
    }
    return v[0];
}

// Up to 16 rows of a tile's scores, and the softmax so far of those there are.
struct Softening {
    const Tile& tile;
    int64_t sight;  // keys of the tile the first of them sees; the next token's rows see one more
    const QueryRows& rows;
    int64_t first, count;
};

// The scores of the keys a row sees become weights in bfloat16 relative to its new maximum, all
// others 0; alpha is what the old sums are multiplied with. As soften of attend.h, of 16 rows, but
// for the weights' exponential.
template <int32_t format>
inline void soften_rows(const Softening& of, const TileAttention& work, float* alpha) {
    constexpr int kVectors = kTileKeys / kLanes;
    const auto there = static_cast<__mmask16>((1u << of.count) - 1);
    const F least = splat(-__builtin_inff());
    F tops[kLanes];
    int64_t sight = of.sight, head = of.first % of.rows.heads;
    for (int64_t r = 0; r < kLanes; ++r) {
        float* scores = work.scores + r * kTileKeys;
        const int64_t seen = std::clamp<int64_t>(sight, 0, of.tile.count);
        const uint64_t sees = seen < kTileKeys ? (uint64_t{1} << seen) - 1 : ~uint64_t{0};
        tops[r] = least;
        each<kVectors>([&](auto v) {
            F score = load(scores + v * kLanes);
            if constexpr (format == M2_KV_INT8) {
                score = mul(score, load(work.key_scales + v * kLanes));
            }
            const auto mask = static_cast<__mmask16>(sees >> (v * kLanes));
            score = _mm512_mask_blend_ps(mask, least, score);
            store(scores + v * kLanes, score);
            tops[r] = larger(score, tops[r]);
        });
        if (++head == of.rows.heads) {
            head = 0;
            ++sight;
        }
    }
    const F before = _mm512_mask_loadu_ps(least, there, of.rows.max + of.first);
    const F next = larger(across(tops, larger), before);
    // While every score is -inf any finite reference will do.
    const __mmask16 none = _mm512_cmp_ps_mask(next, least, _CMP_EQ_OQ);
    float shift[kLanes];
    store(shift, _mm512_mask_blend_ps(none, next, zero()));
    const F factor = exponential(_mm512_sub_ps(before, load(shift)));
    store(alpha, factor);
    F sums[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
        const float* scores = work.scores + r * kTileKeys;
        const F reference = splat(shift[r]);
        F weights[kVectors];
        sums[r] = zero();
        each<kVectors>([&](auto v) {
            const F less = _mm512_sub_ps(load(scores + v * kLanes), reference);
            weights[v] = power_of_two(mul(less, splat(kLog2E)));
            sums[r] = add(sums[r], weights[v]);
            if constexpr (format == M2_KV_INT8) {  // the scale of a key that is not seen may be NaN
                const __mmask16 some = _mm512_cmp_ps_mask(weights[v], zero(), _CMP_NEQ_UQ);
                const F scales = load(work.value_scales + v * kLanes);
                weights[v] = _mm512_maskz_mul_ps(some, weights[v], scales);
            }
        });
        uint8_t* to = work.weights + r * kTileKeys * 2;
        store_bytes(to, row_of_floats(weights[0], weights[1]));
        store_bytes(to + kBytes, row_of_floats(weights[2], weights[3]));
    }
    float* total = of.rows.sum + of.first;
    const F more = across(sums, add);
    const F sum = fma(_mm512_maskz_loadu_ps(there, total), factor, more);
    _mm512_mask_storeu_ps(total, there, sum);
    _mm512_mask_storeu_ps(of.rows.max + of.first, there, next);
}

// Rows first.. of up to 16 against the keys of a tile.
template <int32_t format>
inline void attend_rows(const Tile& tile, int64_t key, const QueryRows& rows, int64_t first,
                        int64_t padded, const TileAttention& work) {
    const int64_t count = std::min(kRegisterRows, rows.count() - first);
    four_tiles(work.queries + first * padded * 2, padded * 2, work.keys,
               kKeyTiles * kRegisterPairs, padded / kRegisterColumns, work.scores, kTileKeys * 4);
    const int64_t sight = rows.first_position + first / rows.heads + 1 - key;
    float alpha[kLanes];
    soften_rows<format>({tile, sight, rows, first, count}, work, alpha);
    const int64_t dim_tiles = padded / kLanes;
    const int64_t steps = (tile.count + kRegisterColumns - 1) / kRegisterColumns;
    for (int64_t d = 0; d < dim_tiles; d += 4) {
        four_tiles(work.weights, kTileKeys * 2, work.values + d * kRegisterPairs,
                   dim_tiles * kRegisterPairs, steps, work.out + d * kLanes, padded * 4);
    }
    for (int64_t r = 0; r < count; ++r) {
        const F factor = splat(alpha[r]);
        float* acc = rows.acc + (first + r) * padded;
        const float* out = work.out + r * padded;
        for (int64_t d = 0; d < padded; d += kLanes) {
            store(acc + d, fma(load(acc + d), factor, load(out + d)));
        }
    }
}

template <int32_t format>
void attend_tiles_to(const HeadKeys& range, const HeadKeys& next, const QueryRows& rows,
                     void* memory) {
    const int64_t padded = padded_head(range.cache.head_dim);
    const TileAttention work = tile_attention(memory, rows.count(), padded);
    const int64_t last = rows.first_position + rows.num_tokens;
    round_queries(rows, padded, work.queries);
    if (range.cache.head_dim != padded) {  // what lies behind the last dimension stays 0
        std::memset(work.keys, 0, static_cast<size_t>(padded * kTileKeys * 2));
        std::memset(work.values, 0, static_cast<size_t>(padded * kTileKeys * 2));
    }
    const TileRegisters registers;
    by_tiles(range, next, last, [&](int64_t key, const Tile& tile, const Tile&) {
        const int64_t hidden = key - rows.first_position;  // tokens that see none of them
        const int64_t first_row = hidden > 0 ? hidden * rows.heads : 0;
        fill_tiles<format>(tile, padded, work);
        const int64_t first = first_row / kRegisterRows * kRegisterRows;
        for (int64_t r = first; r < rows.count(); r += kRegisterRows) {
            attend_rows<format>(tile, key, rows, r, padded, work);
        }
    });
}

}  // namespace
}  // namespace m2::M2_ISA
