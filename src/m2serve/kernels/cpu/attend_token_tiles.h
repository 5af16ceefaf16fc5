// Attention of one decoding token in the tile registers of AMX. Keys and values are multiplied as they
// lie in a bfloat16 cache, neither turned about nor paired: keys are the left side of their product,
// and a pair on the right side of the values' is two dimensions of one key. So a weight meets the even
// dimensions in one row, with a zero behind it, and the odd ones in another, behind a zero.
//
// Queries and weights are sums of two bfloat16 numbers each, 16 of their 24 bits: their products are
// nearly float32's. A value that is not finite spoils its pair, a key may be NaN where it was infinite.
#pragma once

#include "attend_token.h"
#include "tiles.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kRegisterFloats = kRegisterRows * kLanes;
constexpr int64_t kRegisterBytes = kRegisterRows * kBytes;
constexpr int64_t kLinesAtOnce = 32;  // while queries are made ready
constexpr int kMostRows = 8;  // of a token's head

// What is made of the rows of every head, of 16 vectors of the cache, and of one head's tile of keys.
struct TokenTiles {
    uint8_t* queries;  // pairs in bfloat16 [heads, padded / 32, 16 pairs, 16 columns]
    uint8_t* vectors;  // bfloat16 [16, padded]
    uint8_t* weights;  // pairs in bfloat16 [kTileKeys / 16, upper and lower part, 16 rows, 16 keys]
    float* sums;       // [4, 16, 16]
    float* scores;     // [kTileKeys, kMostRows]

    static int64_t query_bytes(int64_t padded) {
        return padded / kRegisterColumns * kRegisterBytes;
    }
    static int64_t bytes(int64_t heads, int64_t padded) {
        return kBytes + heads * query_bytes(padded) + kRegisterRows * padded * 2 +
               kWeightBytes + kSumBytes + kTileKeys * kMostRows * 4;
    }
    TokenTiles(void* memory, int64_t heads, int64_t padded) {
        const auto start = reinterpret_cast<uintptr_t>(memory);
        queries = reinterpret_cast<uint8_t*>((start + kBytes - 1) / kBytes * kBytes);
        vectors = queries + heads * query_bytes(padded);
        weights = vectors + kRegisterRows * padded * 2;
        sums = reinterpret_cast<float*>(weights + kWeightBytes);
        scores = sums + kSumBytes / 4;
    }

  private:
    static constexpr int64_t kWeightBytes = 2 * kTileKeys / kRegisterRows * kRegisterBytes;
    static constexpr int64_t kSumBytes = 4 * kRegisterBytes;
};

// The upper half of every number's bits, and what is left of it, rounded to as many.
struct Parts {
    I upper, lower;  // in the upper half of a lane
};
inline Parts parts_of(F value) {
    const I halves = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    const I upper = _mm512_and_si512(as_bits(value), halves);
    const I rest = as_bits(_mm512_sub_ps(value, as_float(upper)));
    return {upper, _mm512_and_si512(_mm512_add_epi32(rest, _mm512_set1_epi32(0x8000)), halves)};
}
// Pairs of one number or the other in every lane.
inline I pair_up(I even, I odd) { return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd); }

// Columns 0.. of the right side are the upper parts of the rows, from kMostRows on the lower ones.
template <int R>
inline void fill_queries(const float* q, int64_t padded, uint8_t* to) {
    for (int64_t d = 0; d < padded; d += kRegisterColumns, to += kRegisterBytes) {
        F columns[kLanes];
        each<kLanes>([&](auto i) { columns[i] = zero(); });
        each<R>([&](auto r) {
            const Parts even = parts_of(load(q + r * padded + d));
            const Parts odd = parts_of(load(q + r * padded + d + kLanes));
            columns[r] = as_float(pair_up(even.upper, odd.upper));
            columns[kMostRows + r] = as_float(pair_up(even.lower, odd.lower));
        });
        transpose(columns);
        each<kLanes>([&](auto i) { store_bytes(to + i * kBytes, as_bits(columns[i])); });
    }
}

struct VectorRows {
    const uint8_t* first;
    int64_t stride;
};
// The vectors of 16 keys of one block as rows of pairs in bfloat16. Keys behind the first `count` have
// anything in them, values zeros.
template <int32_t format, bool is_value>
inline VectorRows pairs_of_vectors(const uint8_t* from, int64_t bytes, int64_t count, uint8_t* aside) {
    if (format == M2_KV_BF16 && (!is_value || count >= kRegisterRows)) return {from, bytes};
    const int64_t stride = bytes * kParts<format> / 2;
    for (int64_t j = 0; j < kRegisterRows; ++j) {
        for (int64_t b = 0; b < bytes; b += kBytes) {
            uint8_t* to = aside + j * stride + b * kParts<format> / 2;
            const I unit = j < count ? load_bytes(from + j * bytes + b) : no_integers();
            if constexpr (format == M2_KV_BF16) {
                store_bytes(to, unit);
            } else {
                store_bytes(to, exact_pairs_of(kv_part<format, 0>(unit), kv_part<format, 1>(unit)));
                store_bytes(to + kBytes,
                            exact_pairs_of(kv_part<format, 2>(unit), kv_part<format, 3>(unit)));
            }
        }
    }
    return {aside, stride};
}

// Scores of 16 keys from what the two parts of the rows gave, [key][kPitch].
template <int kPitch>
inline void join_scores(const float* sums, float* scores, LinesAhead& ahead) {
    const auto two_keys = [&](int64_t key) {
        const F one = load(sums + key * kLanes), other = load(sums + (key + 1) * kLanes);
        return add(_mm512_shuffle_f32x4(one, other, 0x44), _mm512_shuffle_f32x4(one, other, 0xEE));
    };
    for (int64_t key = 0; key < kRegisterRows; key += kLanes / kPitch) {
        F joined = two_keys(key);
        if constexpr (kPitch == 4) joined = _mm512_shuffle_f32x4(joined, two_keys(key + 2), 0x88);
        store(scores + key * kPitch, joined);
        ahead.ask();
    }
}

// The scores of one head's rows with a tile's keys, [key][kPitch].
template <int32_t format, int R>
inline void score_head(const HeadCache& cache, const Tile& tile, const uint8_t* queries,
                       const TokenTiles& work, LinesAhead& ahead) {
    constexpr int kPitch = FewRows<R>::kPitch;
    const HeadVectors vectors(cache, cache.keys);
    const int64_t steps = cache.head_dim / kRegisterColumns;
    for (int64_t j = 0; j < tile.count; j += kRegisterRows) {
        const VectorRows keys = pairs_of_vectors<format, false>(vectors.at(tile.places[j]), vectors.bytes,
                                                       tile.count - j, work.vectors);
        finish_stores();
        _tile_zero(0);
        for (int64_t s = 0; s < steps; ++s) {
            _tile_loadd(1, keys.first + s * kBytes, keys.stride);
            ahead.ask();
            _tile_loadd(2, queries + s * kRegisterBytes, kBytes);
            _tile_dpbf16ps(0, 1, 2);
            ahead.ask();
        }
        _tile_stored(0, work.sums, kBytes);
        join_scores<kPitch>(work.sums, work.scores + j * kPitch, ahead);
    }
}

// The weights of 16 keys as left sides: rows 0..R meet even dimensions, R..2R odd ones.
template <int R>
inline void fill_weights(const float* scores, uint8_t* to, LinesAhead& ahead) {
    constexpr int kPitch = FewRows<R>::kPitch;
    F rows[kPitch];
    each<kPitch>([&](auto i) { rows[i] = load(scores + i * kLanes); });
    unzip_all<kPitch>(rows);
    each<R>([&](auto r) {
        const Parts parts = parts_of(rows[r]);
        store_bytes(to + r * kBytes, _mm512_srli_epi32(parts.upper, 16));
        store_bytes(to + (R + r) * kBytes, parts.upper);
        uint8_t* lower = to + kRegisterBytes;
        store_bytes(lower + r * kBytes, _mm512_srli_epi32(parts.lower, 16));
        store_bytes(lower + (R + r) * kBytes, parts.lower);
        ahead.ask();
    });
}

// Register `to` += both parts of the weights, in registers 2 and 3, times 32 dimensions of the values.
#define M2_WEIGH(to, dims)               \
    _tile_loadd(1, dims, values.stride); \
    ahead.ask();                         \
    _tile_dpbf16ps(to, 2, 1);            \
    ahead.ask();                         \
    _tile_dpbf16ps(to, 3, 1);            \
    ahead.ask()

// Weights times values of up to 128 dimensions, of `steps` times 32 from `first` on, in work.sums.
template <int32_t format>
inline void weigh_dims(const HeadVectors& vectors, const Tile& tile, int64_t first, int64_t steps,
                       const TokenTiles& work, LinesAhead& ahead) {
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    const uint8_t* weights = work.weights;
    for (int64_t j = 0; j < tile.count; j += kRegisterRows, weights += 2 * kRegisterBytes) {
        const VectorRows values = pairs_of_vectors<format, true>(vectors.at(tile.places[j]), vectors.bytes,
                                                        tile.count - j, work.vectors);
        const uint8_t* dims = values.first + first * kBytes;
        finish_stores();
        _tile_loadd(2, weights, kBytes);
        _tile_loadd(3, weights + kRegisterBytes, kBytes);
        M2_WEIGH(4, dims);
        if (steps > 1) { M2_WEIGH(5, dims + kBytes); }
        if (steps > 2) { M2_WEIGH(6, dims + 2 * kBytes); }
        if (steps > 3) { M2_WEIGH(7, dims + 3 * kBytes); }
    }
    _tile_stored(4, work.sums, kBytes);
    _tile_stored(5, work.sums + kRegisterFloats, kBytes);
    _tile_stored(6, work.sums + 2 * kRegisterFloats, kBytes);
    _tile_stored(7, work.sums + 3 * kRegisterFloats, kBytes);
}
#undef M2_WEIGH

// acc = acc * alpha + weights times values.
template <int32_t format, int R>
inline void weigh_head(const HeadCache& cache, const Tile& tile, const float* alpha, float* acc,
                       const TokenTiles& work, LinesAhead& ahead) {
    const HeadVectors vectors(cache, cache.values);
    const int64_t padded = padded_head(cache.head_dim);
    const int64_t steps = cache.head_dim / kRegisterColumns;
    for (int64_t first = 0; first < steps; first += 4) {
        const int64_t count = steps - first < 4 ? steps - first : 4;
        weigh_dims<format>(vectors, tile, first, count, work, ahead);
        for (int64_t s = 0; s < count; ++s) {
            const float* sums = work.sums + s * kRegisterFloats;
            each<R>([&](auto r) {
                const F factor = splat(alpha[r]);
                float* to = acc + r * padded + (first + s) * kRegisterColumns;
                store(to, fma(load(to), factor, load(sums + r * kLanes)));
                store(to + kLanes, fma(load(to + kLanes), factor, load(sums + (R + r) * kLanes)));
                ahead.ask();
            });
        }
    }
}

// Brings a tile of one head's keys into the state of its rows.
template <int32_t format, int R>
inline void attend_head(const HeadCache& cache, const Tile& tile, const uint8_t* queries,
                        const QueryRows& rows, const TokenTiles& work, LinesAhead& ahead) {
    constexpr int kPitch = FewRows<R>::kPitch;
    float* scores = work.scores;
    alignas(64) float alpha[kLanes];
    score_head<format, R>(cache, tile, queries, work, ahead);
    if constexpr (format == M2_KV_INT8) scale_few<R>(scores, cache.key_scales, tile);
    soften_few<R>(scores, tile.count, rows.max, rows.sum, alpha, ahead);
    if constexpr (format == M2_KV_INT8) scale_few<R>(scores, cache.value_scales, tile);
    const int64_t whole = (tile.count + kRegisterRows - 1) / kRegisterRows * kRegisterRows;
    for (int64_t i = tile.count * kPitch; i < whole * kPitch; ++i) scores[i] = 0.0f;
    for (int64_t j = 0; j < whole; j += kRegisterRows) {
        fill_weights<R>(scores + j * kPitch,
                        work.weights + j / kRegisterRows * 2 * kRegisterBytes, ahead);
    }
    weigh_head<format, R>(cache, tile, alpha, rows.acc, work, ahead);
    ahead.ask_for_all();
}

template <int32_t format, int R>
void attend_heads_in_tiles(const TokenHeads& heads, void* memory) {
    const HeadKeys& range = heads.keys;
    const int64_t padded = padded_head(range.cache.head_dim);
    const int64_t query_bytes = TokenTiles::query_bytes(padded);
    const TokenTiles work(memory, heads.num_heads, padded);
    Tile tiles[2];
    tiles[0].find(range, range.first, range.end);
    LinesAhead beginning(range.cache, tiles[0]);
    for (int64_t h = 0; h < heads.num_heads; ++h) {
        beginning.ask(kLinesAtOnce);
        fill_queries<R>(rows_of_head(heads, h).q, padded, work.queries + h * query_bytes);
    }
    beginning.ask_for_all();
    const TileRegisters registers;
    int now = 0;
    for (int64_t key = range.first; key < range.end; key += kTileKeys, now = 1 - now) {
        tiles[1 - now].find(range, key + kTileKeys, range.end);
        HeadCache cache = range.cache;
        for (int64_t h = 0; h < heads.num_heads; ++h) {
            const bool is_last = h + 1 == heads.num_heads;
            const HeadCache next = cache_of_head(heads, is_last ? 0 : h + 1);
            LinesAhead ahead(next, tiles[is_last ? 1 - now : now]);
            attend_head<format, R>(cache, tiles[now], work.queries + h * query_bytes,
                                   rows_of_head(heads, h), work, ahead);
            cache = next;
        }
    }
}

template <int32_t format>
bool attend_token_tiles_of(const TokenHeads& heads, void* memory) {
    switch (heads.rows.heads) {
        case 3: attend_heads_in_tiles<format, 3>(heads, memory); return true;
        case 4: attend_heads_in_tiles<format, 4>(heads, memory); return true;
        case 6: attend_heads_in_tiles<format, 6>(heads, memory); return true;
        case 8: attend_heads_in_tiles<format, 8>(heads, memory); return true;
        default: return false;
    }
}

// With fewer keys the rows are not worth being made ready for the tiles.
constexpr int64_t kTilesFromKeys = 128;

// False, and nothing done, where the tiles cannot or should not: float32, two rows, odd sizes, few keys.
inline bool attend_token_tiles(const TokenHeads& heads, void* memory) {
    const HeadCache& cache = heads.keys.cache;
    const bool fits = cache.block_size % kRegisterRows == 0 &&
                      heads.keys.first % kRegisterRows == 0 &&
                      cache.head_dim * kv_element_bytes(cache.format) % kBytes == 0;
    if (!fits || heads.keys.end - heads.keys.first < kTilesFromKeys) return false;
    switch (cache.format) {
        case M2_KV_BF16: return attend_token_tiles_of<M2_KV_BF16>(heads, memory);
        case M2_KV_INT8: return attend_token_tiles_of<M2_KV_INT8>(heads, memory);
        case M2_KV_FP8: return attend_token_tiles_of<M2_KV_FP8>(heads, memory);
        default: return false;
    }
}

}  // namespace
}  // namespace m2::M2_ISA
