// Softmax attention of a few query rows over a tile of keys at a time, with an online softmax.
//
// Every row is computed by the same operations in the same order whatever rows are computed beside
// it, so that a token's result does not depend on how a prompt was cut into steps.
#pragma once

#include <cstring>

#include "exponential.h"
#include "kv_codec.h"

namespace m2::M2_ISA {
namespace {

inline F larger(F a, F b) {
    const Floats x = (Floats)a, y = (Floats)b;
    const Floats most = x > y ? x : y;
    return (F)most;
}

// scores[r * kTileKeys + j] of R rows and K keys.
template <int R, int K>
inline void dots(const float* q, int64_t padded, const float* const* keys, float* scores) {
    F acc[R][K];
    for (auto& row : acc) {
        for (F& one : row) one = zero();
    }
    for (int64_t d = 0; d < padded; d += kLanes) {
        F key[K];
        for (int j = 0; j < K; ++j) key[j] = load(keys[j] + d);
        for (int r = 0; r < R; ++r) {
            const F value = load(q + r * padded + d);
            for (int j = 0; j < K; ++j) acc[r][j] = fma(value, key[j], acc[r][j]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int j = 0; j < K; ++j) scores[r * kTileKeys + j] = sum(acc[r][j]);
    }
}

template <int R>
inline void score_rows(const float* q, int64_t padded, const float* const* keys, int64_t num_keys,
                       float* scores) {
    int64_t j = 0;
    for (; j + 2 <= num_keys; j += 2) dots<R, 2>(q, padded, keys + j, scores + j);
    if (j < num_keys) dots<R, 1>(q, padded, keys + j, scores + j);
}

// acc = acc * alpha + sum of p[j] * values[j], for R rows.
template <int R>
inline void weigh_rows(const float* p, const float* alpha, const float* const* values,
                       int64_t num_keys, int64_t padded, float* acc) {
    for (int64_t d = 0; d < padded; d += 2 * kLanes) {
        F total[R][2];
        for (int r = 0; r < R; ++r) {
            const F factor = splat(alpha[r]);
            total[r][0] = mul(load(acc + r * padded + d), factor);
            total[r][1] = mul(load(acc + r * padded + d + kLanes), factor);
        }
        for (int64_t j = 0; j < num_keys; ++j) {
            const F low = load(values[j] + d);
            const F high = load(values[j] + d + kLanes);
            for (int r = 0; r < R; ++r) {
                const F weight = splat(p[r * kTileKeys + j]);
                total[r][0] = fma(weight, low, total[r][0]);
                total[r][1] = fma(weight, high, total[r][1]);
            }
        }
        for (int r = 0; r < R; ++r) {
            store(acc + r * padded + d, total[r][0]);
            store(acc + r * padded + d + kLanes, total[r][1]);
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

// Scores become weights relative to the new maximum; returns what the old sums are multiplied with.
inline float soften(float* scores, int64_t num_keys, float* max, float* total) {
    const int64_t whole = (num_keys + kLanes - 1) / kLanes * kLanes;
    for (int64_t j = num_keys; j < whole; ++j) scores[j] = -__builtin_inff();
    F most = splat(*max);
    for (int64_t j = 0; j < whole; j += kLanes) most = larger(load(scores + j), most);
    float lanes[kLanes];
    store(lanes, most);
    float next = *max;
    for (const float lane : lanes) next = lane > next ? lane : next;
    // While every score is -inf any finite reference will do.
    const float reference = next == -__builtin_inff() ? 0.0f : next;
    const F shift = splat(-reference);
    F sums = zero();
    for (int64_t j = 0; j < whole; j += kLanes) {
        const F weight = exponential(add(load(scores + j), shift));
        store(scores + j, weight);
        sums = add(sums, weight);
    }
    store(lanes, exponential(splat(*max - reference)));
    *total = *total * lanes[0] + sum(sums);
    *max = next;
    return lanes[0];
}

struct AttendScratch {
    float* tile;    // [kTileKeys, padded]
    float* scores;  // [rows, kTileKeys]
    float* alpha;   // [rows]
};
inline AttendScratch attend_scratch(void* memory, int64_t rows, int64_t padded) {
    auto* tile = static_cast<float*>(memory);
    return {tile, tile + kTileKeys * padded, tile + kTileKeys * (padded + rows)};
}
int64_t attend_scratch_bytes(int64_t rows, int64_t head_dim) {
    return 4 * (kTileKeys * (padded_head(head_dim) + rows) + rows);
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

void attend(const HeadCache& cache, int64_t first, int64_t end, const QueryRows& rows,
            void* memory) {
    const int64_t padded = padded_head(cache.head_dim);
    const AttendScratch scratch = attend_scratch(memory, rows.count(), padded);
    const int64_t last = rows.first_position + rows.num_tokens;
    const int64_t seen_end = end < last ? end : last;
    for (int64_t key = first; key < seen_end; key += kTileKeys) {
        const int64_t num_keys = seen_end - key < kTileKeys ? seen_end - key : kTileKeys;
        const int64_t next = seen_end - key - num_keys;
        const float* vectors[kTileKeys];
        prefetch_heads(cache, cache.values, key, num_keys);
        load_heads(cache, cache.keys, cache.key_scales, key, num_keys, scratch.tile, vectors);
        by_sight(rows, key, num_keys, [&](int64_t row, int64_t count, int64_t seen) {
            in_groups(count, [&](auto group, int64_t r) {
                score_rows<decltype(group)::kRows>(rows.q + (row + r) * padded, padded, vectors,
                                                   seen, scratch.scores + (row + r) * kTileKeys);
            });
            for (int64_t r = row; r < row + count; ++r) {
                scratch.alpha[r] = soften(scratch.scores + r * kTileKeys, seen, rows.max + r,
                                          rows.sum + r);
            }
        });
        prefetch_heads(cache, cache.keys, key + num_keys, next < kTileKeys ? next : kTileKeys);
        load_heads(cache, cache.values, cache.value_scales, key, num_keys, scratch.tile, vectors);
        by_sight(rows, key, num_keys, [&](int64_t row, int64_t count, int64_t seen) {
            in_groups(count, [&](auto group, int64_t r) {
                weigh_rows<decltype(group)::kRows>(scratch.scores + (row + r) * kTileKeys,
                                                   scratch.alpha + row + r, vectors, seen, padded,
                                                   rows.acc + (row + r) * padded);
            });
        });
    }
}

}  // namespace
}  // namespace m2::M2_ISA
