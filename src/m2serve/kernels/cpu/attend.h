// Softmax attention of query rows over a tile of keys at a time, with an online softmax; what a
// decoding token does with its few rows is in attend_token.h.
//
// Every row is computed by the same operations in the same order whatever rows are computed beside
// it, so that a token's result does not depend on how a prompt was cut into steps, but for a step of
// one token.
#pragma once

#include <cstring>

#include "exponential.h"
#include "kv_codec.h"
#include "zip.h"

namespace m2::M2_ISA {
namespace {

inline F larger(F a, F b) {
    const Floats x = (Floats)a, y = (Floats)b;
    const Floats most = x > y ? x : y;
    return (F)most;
}

// Cache lines to ask for, one by one between other work: many at once would wait for one another.
class Lines {
  public:
    void add(const uint8_t* from, int64_t bytes) {
        for (int64_t b = 0; b < bytes && end_ < kMost; b += 64) lines_[end_++] = from + b;
    }
    void ask() {
        if (next_ < end_) __builtin_prefetch(lines_[next_++]);
    }
    void clear() { next_ = end_ = 0; }

  private:
    static constexpr int kMost = 512;
    const uint8_t* lines_[kMost];
    int next_ = 0, end_ = 0;
};

// scores[r * kTileKeys + j] of R rows and the kTurned keys in `tile`. A lane is a key, so that nothing
// is summed across lanes.
template <int R>
inline void dots(const float* q, int64_t padded, int64_t dims, const float* tile, float* scores,
                 Lines& lines) {
    F acc[R][2];
    each<R>([&](auto r) { acc[r][0] = acc[r][1] = zero(); });
    for (int64_t d = 0; d < dims; ++d) {
        lines.ask();
        const F low = load(tile + d * kTurned), high = load(tile + d * kTurned + kLanes);
        each<R>([&](auto r) {
            const F value = splat(q[r * padded + d]);
            acc[r][0] = fma(value, low, acc[r][0]);
            acc[r][1] = fma(value, high, acc[r][1]);
        });
    }
    each<R>([&](auto r) {
        store(scores + r * kTileKeys, acc[r][0]);
        store(scores + r * kTileKeys + kLanes, acc[r][1]);
    });
}

// Two vectors of floats of the pass at byte b of every value, from `part` on, for R rows:
// acc = acc * alpha + sum of p[j] * values[j]. The weight of row r and value j stands at
// p[r * kByRow + j * kByKey].
template <int32_t format, int R, int part, int kByRow, int kByKey>
inline void weigh_unit(const float* p, const float* alpha, const uint8_t* const* values,
                       int64_t num_keys, int64_t b, int64_t padded, float* acc) {
    constexpr int kCount = 2;
    F total[R][kCount];
    float* to = acc + (b / kBytes * kParts<format> + part) * kLanes;
    each<R>([&](auto r) {
        const F factor = splat(alpha[r]);
        each<kCount>([&](auto i) {
            total[r][i] = mul(load(to + r * padded + i * kLanes), factor);
        });
    });
    for (int64_t j = 0; j < num_keys; ++j) {
        F value[kCount];
        each<kCount>([&](auto i) {
            constexpr int one = part + i;  // of the numbers of a unit, or a unit of its own
            const I unit = load_bytes(values[j] + b + one / kParts<format> * kBytes);
            value[i] = kv_part<format, one % kParts<format>>(unit);
        });
        each<R>([&](auto r) {
            const F weight = splat(p[r * kByRow + j * kByKey]);
            each<kCount>([&](auto i) { total[r][i] = fma(weight, value[i], total[r][i]); });
        });
    }
    each<R>([&](auto r) {
        each<kCount>([&](auto i) { store(to + r * padded + i * kLanes, total[r][i]); });
    });
}

// The same for all of every value. acc has unit after unit, part after part.
template <int32_t format, int R, int kByRow, int kByKey>
inline void weigh_rows(const float* p, const float* alpha, const uint8_t* const* values,
                       int64_t num_keys, int64_t bytes, int64_t padded, float* acc) {
    for (int64_t b = 0; b < bytes; b += kPassBytes<format>) {
        weigh_unit<format, R, 0, kByRow, kByKey>(p, alpha, values, num_keys, b, padded, acc);
        if constexpr (kParts<format> == 4) {
            weigh_unit<format, R, 2, kByRow, kByKey>(p, alpha, values, num_keys, b, padded, acc);
        }
    }
}

template <int R>
struct Group {
    static constexpr int kRows = R;
};

// Calls run(Group<R>{}, first row) over `rows` rows, six at a time.
template <class Run>
inline void in_groups(int64_t rows, const Run& run) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6) run(Group<6>{}, r);
    for (; r + 4 <= rows; r += 4) run(Group<4>{}, r);
    for (; r + 2 <= rows; r += 2) run(Group<2>{}, r);
    if (r < rows) run(Group<1>{}, r);
}

// The scores of the keys seen become weights relative to the new maximum, all others up to num_keys
// 0; returns what the old sums are multiplied with.
inline float soften(float* scores, int64_t seen, int64_t num_keys, float* max, float* total) {
    const int64_t whole = (num_keys + kLanes - 1) / kLanes * kLanes;
    for (int64_t j = seen; j < whole; ++j) scores[j] = -__builtin_inff();
    F most = splat(*max);
    for (int64_t j = 0; j < whole; j += kLanes) most = larger(load(scores + j), most);
    const float next = largest(most);
    // While every score is -inf any finite reference will do.
    const float reference = next == -__builtin_inff() ? 0.0f : next;
    const F shift = splat(-reference);
    F sums = zero();
    for (int64_t j = 0; j < whole; j += kLanes) {
        const F weight = exponential(add(load(scores + j), shift));
        store(scores + j, weight);
        sums = add(sums, weight);
    }
    float alpha[kLanes];
    store(alpha, exponential(splat(*max - reference)));
    *total = *total * alpha[0] + sum(sums);
    *max = next;
    return alpha[0];
}

struct AttendScratch {
    float* tile;    // turned keys [padded, kTurned], then values that are no whole units
    float* scores;  // [rows, kTileKeys]
    float* alpha;   // [rows]
};
inline int64_t tile_floats(int64_t padded) {
    return padded * (kTurned > kTileKeys ? kTurned : kTileKeys);
}
inline AttendScratch attend_scratch(void* memory, int64_t rows, int64_t padded) {
    auto* tile = static_cast<float*>(memory);
    float* scores = tile + tile_floats(padded);
    return {tile, scores, scores + kTileKeys * rows};
}
inline int64_t attend_scratch_bytes(int64_t rows, int64_t, int64_t head_dim) {
    return 4 * (tile_floats(padded_head(head_dim)) + (kTileKeys + 1) * rows);
}

// Calls run(first row, rows, keys they see) over the tokens that see any of the tile's keys: those
// that see them all together, the others one by one.
template <class Run>
inline void by_sight(const QueryRows& rows, int64_t first_key, int64_t num_keys, const Run& run) {
    const int64_t hidden = first_key - rows.first_position;  // tokens that see none
    int64_t token = hidden > 0 ? hidden : 0;
    for (; token < rows.num_tokens; ++token) {
        const int64_t seen = rows.first_position + token + 1 - first_key;
        if (seen >= num_keys) break;
        run(token * rows.heads, rows.heads, seen);
    }
    if (token < rows.num_tokens) {
        run(token * rows.heads, (rows.num_tokens - token) * rows.heads, num_keys);
    }
}

// Where the vectors of one tile lie.
struct Tile {
    HeadCache cache;
    int64_t count;
    int64_t places[kTileKeys];  // any that are there behind the count, to a whole kTurned

    void find(const HeadKeys& keys, int64_t first, int64_t end) {
        cache = keys.cache;
        const int64_t left = end - first;
        count = left < 0 ? 0 : left < kTileKeys ? left : kTileKeys;
        find_places(cache, first, count, places);
        for (int64_t j = count; j % kTurned != 0; ++j) places[j] = places[0];
    }
};

// Calls run(first key, tile, what lies ahead of it) over a range's keys before `last`; behind the range
// comes `next`.
template <class Run>
inline void by_tiles(const HeadKeys& range, const HeadKeys& next, int64_t last, const Run& run) {
    const int64_t end = range.end < last ? range.end : last;
    Tile tiles[2];
    tiles[0].find(range, range.first, end);
    int now = 0;
    for (int64_t key = range.first; key < end; key += kTileKeys, now = 1 - now) {
        Tile& ahead = tiles[1 - now];
        ahead.find(range, key + kTileKeys, end);
        if (ahead.count == 0) ahead.find(next, next.first, next.end < last ? next.end : last);
        run(key, tiles[now], ahead);
    }
}

// The scores of the rows from first_row on and the keys of a tile; asks for what lies ahead.
template <int32_t format>
inline void score_tile(const Tile& tile, const Tile& ahead, const QueryRows& rows,
                       int64_t first_row, const AttendScratch& scratch) {
    const HeadCache& cache = tile.cache;
    const int64_t padded = padded_head(cache.head_dim);
    const HeadVectors keys(cache, cache.keys);
    const HeadVectors next_keys(ahead.cache, ahead.cache.keys);
    const HeadVectors next_values(ahead.cache, ahead.cache.values);
    Lines lines;
    for (int64_t j = 0; j < tile.count; j += kTurned) {
        lines.clear();
        for (int64_t i = j; i < j + kTurned && i < ahead.count; ++i) {
            lines.add(next_keys.at(ahead.places[i]), next_keys.bytes);
            lines.add(next_values.at(ahead.places[i]), next_values.bytes);
        }
        turn_keys<format>(keys, tile.places + j, scratch.tile);
        turn_keys<format>(keys, tile.places + j + kLanes, scratch.tile + kLanes);
        in_groups(rows.count() - first_row, [&](auto group, int64_t r) {
            const int64_t row = first_row + r;
            dots<decltype(group)::kRows>(rows.q + row * padded, padded, cache.head_dim,
                                         scratch.tile, scratch.scores + row * kTileKeys + j, lines);
        });
    }
    if constexpr (format == M2_KV_INT8) {
        for (int64_t r = first_row; r < rows.count(); ++r) {
            float* scores = scratch.scores + r * kTileKeys;
            for (int64_t j = 0; j < tile.count; ++j) scores[j] *= cache.key_scales[tile.places[j]];
        }
    }
}

template <int32_t format>
void attend_to(const HeadKeys& range, const HeadKeys& next, const QueryRows& rows, void* memory) {
    const HeadCache& cache = range.cache;
    const int64_t padded = padded_head(cache.head_dim);
    const AttendScratch scratch = attend_scratch(memory, rows.count(), padded);
    const HeadVectors values(cache, cache.values);
    const int64_t last = rows.first_position + rows.num_tokens;
    by_tiles(range, next, last, [&](int64_t key, const Tile& tile, const Tile& ahead) {
        const int64_t hidden = key - rows.first_position;  // tokens that see none of them
        const int64_t first_row = hidden > 0 ? hidden * rows.heads : 0;
        score_tile<format>(tile, ahead, rows, first_row, scratch);
        for (int64_t r = first_row; r < rows.count(); ++r) {
            const int64_t sight = rows.first_position + r / rows.heads + 1 - key;
            float* scores = scratch.scores + r * kTileKeys;
            scratch.alpha[r] = soften(scores, sight < tile.count ? sight : tile.count, tile.count,
                                      rows.max + r, rows.sum + r);
            if constexpr (format == M2_KV_INT8) {
                for (int64_t j = 0; j < tile.count; ++j) {
                    scores[j] *= cache.value_scales[tile.places[j]];
                }
            }
        }
        const uint8_t* vectors[kTileKeys];
        find_values<format>(values, tile.places, tile.count,
                            reinterpret_cast<uint8_t*>(scratch.tile), vectors);
        by_sight(rows, key, tile.count, [&](int64_t row, int64_t count, int64_t seen) {
            in_groups(count, [&](auto group, int64_t r) {
                weigh_rows<format, decltype(group)::kRows, kTileKeys, 1>(
                    scratch.scores + (row + r) * kTileKeys, scratch.alpha + row + r, vectors, seen,
                    values.bytes, padded, rows.acc + (row + r) * padded);
            });
        });
    });
}

inline void attend(const HeadKeys& keys, const HeadKeys& next, const QueryRows& rows, void* memory) {
    switch (keys.cache.format) {
        case M2_KV_F32: return attend_to<M2_KV_F32>(keys, next, rows, memory);
        case M2_KV_BF16: return attend_to<M2_KV_BF16>(keys, next, rows, memory);
        case M2_KV_INT8: return attend_to<M2_KV_INT8>(keys, next, rows, memory);
        default: return attend_to<M2_KV_FP8>(keys, next, rows, memory);
    }
}

// Numbers of a row from units and parts to the order of the dimensions, or the other way round.
template <int parts, bool is_back>
inline void turn_dims(float* row, int64_t padded) {
    for (int64_t d = 0; d < padded; d += parts * kLanes) {
        F unit[parts];
        for (int j = 0; j < parts; ++j) unit[j] = load(row + d + j * kLanes);
        is_back ? unzip_all<parts>(unit) : zip_all<parts>(unit);
        for (int j = 0; j < parts; ++j) store(row + d + j * kLanes, unit[j]);
    }
}

inline void order_dims(int32_t format, float* acc, int64_t padded) {
    if (kv_element_bytes(format) == 2) turn_dims<2, false>(acc, padded);
    if (kv_element_bytes(format) == 1) turn_dims<4, false>(acc, padded);
}

inline void arrange_dims(int32_t format, float* q, int64_t padded) {
    if (kv_element_bytes(format) == 2) turn_dims<2, true>(q, padded);
    if (kv_element_bytes(format) == 1) turn_dims<4, true>(q, padded);
}

}  // namespace
}  // namespace m2::M2_ISA
