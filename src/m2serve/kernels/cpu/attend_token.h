// Attention of one decoding token: so few query rows share a head's keys that turning the keys about,
// as attend.h does for a prompt, would cost more than it saves. Products are summed along the
// dimensions, and a lane of the scores is a row: a vector holds all rows of one or several keys.
#pragma once

#include "attend.h"

namespace m2::M2_ISA {
namespace {

// R rows, padded to a divisor of the lanes; scores[j * kPitch + r].
template <int R>
struct FewRows {
    static constexpr int kPitch = R <= 2 ? 2 : R <= 4 ? 4 : 8;
    static constexpr int kKeys = kLanes / kPitch;  // of a vector of scores
    // Keys at once: with fewer sums than this an addition would wait for the one before it.
    static constexpr int kVectors = R * kKeys < 8 ? 2 : 1;
    static constexpr int kAtOnce = kVectors * kKeys;
};
static_assert(kTileKeys % (2 * kLanes) == 0);

// The products of R rows and kAtOnce keys.
template <int32_t format, int R>
inline void few_dots(const float* q, int64_t padded, const uint8_t* const* keys, int64_t bytes,
                     float* scores) {
    using Few = FewRows<R>;
    F acc[Few::kAtOnce][R];
    each<Few::kAtOnce>([&](auto k) { each<R>([&](auto r) { acc[k][r] = zero(); }); });
    const auto meet = [&](int64_t b, const auto& unit_of) {
        const float* query = q + b / kBytes * (kParts<format> * kLanes);
        each<kParts<format>>([&](auto part) {
            F value[Few::kAtOnce];
            each<Few::kAtOnce>([&](auto k) { value[k] = kv_part<format, part>(unit_of(k)); });
            each<R>([&](auto r) {
                const F one = load(query + r * padded + part * kLanes);
                each<Few::kAtOnce>([&](auto k) { acc[k][r] = fma(one, value[k], acc[k][r]); });
            });
        });
    };
    int64_t b = 0;
    for (; b + kBytes <= bytes; b += kBytes) {
        meet(b, [&](auto k) { return load_bytes(keys[k] + b); });
    }
    if (b < bytes) meet(b, [&](auto k) { return load_unit(keys[k] + b, bytes - b); });
    each<Few::kVectors>([&](auto v) {
        F rows[kLanes];
        each<kLanes>([&](auto i) {
            constexpr int key = v * Few::kKeys + i / Few::kPitch, row = i % Few::kPitch;
            if constexpr (row < R) {
                rows[i] = acc[key][row];
            } else {
                rows[i] = zero();
            }
        });
        store(scores + v * kLanes, sums_of(rows));
    });
}

// The scores of a tile; asks for what lies ahead, a key at a time.
template <int32_t format, int R>
inline void score_few(const Tile& tile, const Tile& ahead, const QueryRows& rows, float* scores) {
    using Few = FewRows<R>;
    const HeadCache& cache = tile.cache;
    const int64_t padded = padded_head(cache.head_dim);
    const HeadVectors keys(cache, cache.keys);
    const HeadVectors next_keys(ahead.cache, ahead.cache.keys);
    const HeadVectors next_values(ahead.cache, ahead.cache.values);
    for (int64_t j = 0; j < tile.count; j += Few::kAtOnce) {
        const uint8_t* vectors[Few::kAtOnce];
        for (int k = 0; k < Few::kAtOnce; ++k) {
            vectors[k] = keys.at(tile.places[j + k]);
            if (j + k >= ahead.count) continue;
            const uint8_t* key = next_keys.at(ahead.places[j + k]);
            const uint8_t* value = next_values.at(ahead.places[j + k]);
            for (int64_t b = 0; b < next_keys.bytes; b += 64) {
                __builtin_prefetch(key + b);
                __builtin_prefetch(value + b);
            }
        }
        few_dots<format, R>(rows.q, padded, vectors, keys.bytes, scores + j * Few::kPitch);
    }
}

// Every row's scores of key j times scales[j].
template <int R>
inline void scale_few(float* scores, const float* scales, const Tile& tile) {
    constexpr int kPitch = FewRows<R>::kPitch;
    for (int64_t j = 0; j < tile.count; ++j) {
        const float scale = scales[tile.places[j]];
        for (int r = 0; r < kPitch; ++r) scores[j * kPitch + r] *= scale;
    }
}

// As soften of attend.h, of all rows together; alpha[r] is what the old sums are multiplied with.
template <int R>
inline void soften_few(float* scores, int64_t num_keys, float* max, float* total, float* alpha) {
    constexpr int kPitch = FewRows<R>::kPitch;
    const int64_t count = num_keys * kPitch;
    const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = count; i < whole; ++i) scores[i] = -__builtin_inff();
    F most = load(scores);
    for (int64_t i = kLanes; i < whole; i += kLanes) most = larger(load(scores + i), most);
    alignas(64) float lanes[kLanes], reference[kLanes];
    float next[kPitch];
    store(lanes, most);
    for (int r = 0; r < kPitch; ++r) {
        next[r] = r < R ? max[r] : -__builtin_inff();
        // A NaN may be lost here; the sums keep it.
        for (int i = r; i < kLanes; i += kPitch) next[r] = lanes[i] <= next[r] ? next[r] : lanes[i];
    }
    for (int i = 0; i < kLanes; ++i) {
        // While every score is -inf any finite reference will do.
        reference[i] = next[i % kPitch] == -__builtin_inff() ? 0.0f : next[i % kPitch];
    }
    const F shift = load(reference);
    F sums = zero();
    for (int64_t i = 0; i < whole; i += kLanes) {
        const F weight = exponential((F)((Floats)load(scores + i) - (Floats)shift));
        store(scores + i, weight);
        sums = add(sums, weight);
    }
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < R ? max[i] - reference[i] : 0.0f;
    store(alpha, exponential(load(lanes)));
    store(lanes, sums);
    for (int r = 0; r < R; ++r) {
        float sum = 0;
        for (int i = r; i < kLanes; i += kPitch) sum += lanes[i];
        total[r] = total[r] * alpha[r] + sum;
        max[r] = next[r];
    }
}

template <int32_t format, int R>
void attend_few(const HeadKeys& range, const HeadKeys& next, const QueryRows& rows, void* memory) {
    constexpr int kPitch = FewRows<R>::kPitch;
    const int64_t padded = padded_head(range.cache.head_dim);
    const HeadVectors values(range.cache, range.cache.values);
    const int64_t last = rows.first_position + 1;
    alignas(64) float scores[kTileKeys * kPitch];
    alignas(64) float alpha[kLanes];
    by_tiles(range, next, last, [&](int64_t, const Tile& tile, const Tile& ahead) {
        score_few<format, R>(tile, ahead, rows, scores);
        if constexpr (format == M2_KV_INT8) scale_few<R>(scores, range.cache.key_scales, tile);
        soften_few<R>(scores, tile.count, rows.max, rows.sum, alpha);
        if constexpr (format == M2_KV_INT8) scale_few<R>(scores, range.cache.value_scales, tile);
        const uint8_t* vectors[kTileKeys];
        find_values<format>(values, tile.places, tile.count, static_cast<uint8_t*>(memory),
                            vectors);
        constexpr int kTogether = R == 8 ? 4 : R;  // their sums stay in registers
        for (int r = 0; r < R; r += kTogether) {
            weigh_rows<format, kTogether, 1, kPitch>(scores + r, alpha + r, vectors, tile.count,
                                                     values.bytes, padded, rows.acc + r * padded);
        }
    });
}

template <int32_t format>
void attend_token_of(const HeadKeys& keys, const HeadKeys& next, const QueryRows& rows,
                     void* memory) {
    switch (rows.heads) {
        case 2: return attend_few<format, 2>(keys, next, rows, memory);
        case 3: return attend_few<format, 3>(keys, next, rows, memory);
        case 4: return attend_few<format, 4>(keys, next, rows, memory);
        case 6: return attend_few<format, 6>(keys, next, rows, memory);
        case 8: return attend_few<format, 8>(keys, next, rows, memory);
        default: __builtin_trap();  // not are_few_heads
    }
}

void attend_token(const HeadKeys& keys, const HeadKeys& next, const QueryRows& rows, void* memory) {
    switch (keys.cache.format) {
        case M2_KV_F32: return attend_token_of<M2_KV_F32>(keys, next, rows, memory);
        case M2_KV_BF16: return attend_token_of<M2_KV_BF16>(keys, next, rows, memory);
        case M2_KV_INT8: return attend_token_of<M2_KV_INT8>(keys, next, rows, memory);
        default: return attend_token_of<M2_KV_FP8>(keys, next, rows, memory);
    }
}

}  // namespace
}  // namespace m2::M2_ISA
