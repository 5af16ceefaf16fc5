// Attention of one decoding token: so few query rows share a head's keys that turning the keys about,
// as attend.h does for a prompt, would cost more than it saves. Products are summed along the
// dimensions, and a lane of the scores is a row: a vector holds all rows of one or several keys.
#pragma once

#include "attend.h"

namespace m2::M2_ISA {
namespace {

// Of a token's heads: not members, so that each instruction set has its own.
inline HeadCache cache_of_head(const TokenHeads& heads, int64_t head) {
    HeadCache cache = heads.keys.cache;
    const int64_t before = head * cache.block_size;
    const int64_t bytes = before * cache.head_dim * kv_element_bytes(cache.format);
    cache.keys += bytes;
    cache.values += bytes;
    if (cache.key_scales) cache.key_scales += before;
    if (cache.value_scales) cache.value_scales += before;
    return cache;
}
inline QueryRows rows_of_head(const TokenHeads& heads, int64_t head) {
    QueryRows rows = heads.rows;
    rows.q += head * heads.q_stride;
    rows.max += head * heads.state_stride;
    rows.sum += head * heads.state_stride;
    rows.acc += head * heads.state_stride;
    return rows;
}

// What is wanted of keys and values next, asked for a line of each at a time, between all other work:
// asked for together they would wait for one another, and the processor's own prefetching, which
// reads ahead of steady streams, would not start.
class LinesAhead {
  public:
    // Of the cache's head and the keys of `tile`, which has to stay.
    LinesAhead(const HeadCache& cache, const Tile& tile)
        : keys_(cache, cache.keys), values_(cache, cache.values), tile_(tile) {
        find();
    }
    void ask() {
        if (key_ >= tile_.count) return;
        __builtin_prefetch(keys_.base + at_);
        __builtin_prefetch(values_.base + at_);
        at_ += 64;
        if (at_ < end_) return;
        ++key_;
        find();
    }
    void ask(int64_t lines) {
        for (int64_t i = 0; i < lines; ++i) ask();
    }
    void ask_for_all() {
        while (key_ < tile_.count) ask();
    }

  private:
    void find() {
        if (key_ >= tile_.count) return;
        at_ = tile_.places[key_] * keys_.bytes;
        end_ = at_ + keys_.bytes;
    }

    const HeadVectors keys_, values_;
    const Tile& tile_;
    int64_t key_ = 0, at_ = 0, end_ = 0;
};

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

// The scores of a tile.
template <int32_t format, int R>
inline void score_few(const Tile& tile, const QueryRows& rows, float* scores, LinesAhead& ahead) {
    using Few = FewRows<R>;
    const HeadCache& cache = tile.cache;
    const int64_t padded = padded_head(cache.head_dim);
    const HeadVectors keys(cache, cache.keys);
    const int64_t lines = keys.bytes * Few::kAtOnce / 2 / 64;  // the other half in what follows
    for (int64_t j = 0; j < tile.count; j += Few::kAtOnce) {
        const uint8_t* vectors[Few::kAtOnce];
        for (int k = 0; k < Few::kAtOnce; ++k) vectors[k] = keys.at(tile.places[j + k]);
        few_dots<format, R>(rows.q, padded, vectors, keys.bytes, scores + j * Few::kPitch);
        ahead.ask(lines);
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
inline void soften_few(float* scores, int64_t num_keys, float* max, float* total, float* alpha,
                       LinesAhead& ahead) {
    constexpr int kPitch = FewRows<R>::kPitch;
    const int64_t count = num_keys * kPitch;
    const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = count; i < whole; ++i) scores[i] = -__builtin_inff();
    F most = load(scores);
    for (int64_t i = kLanes; i < whole; i += kLanes) {
        most = larger(load(scores + i), most);
        ahead.ask();
    }
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
        ahead.ask();
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
        LinesAhead lines(ahead.cache, ahead);
        score_few<format, R>(tile, rows, scores, lines);
        if constexpr (format == M2_KV_INT8) scale_few<R>(scores, range.cache.key_scales, tile);
        soften_few<R>(scores, tile.count, rows.max, rows.sum, alpha, lines);
        lines.ask_for_all();
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

template <int32_t format, int R>
void attend_heads(const TokenHeads& heads, void* memory) {
    // Tile by tile, so that the heads' keys of one block are read one after the other.
    const auto keys_of = [&](int64_t h, int64_t key) {
        const int64_t end = key + kTileKeys < heads.keys.end ? key + kTileKeys : heads.keys.end;
        return HeadKeys{cache_of_head(heads, h), key, end};
    };
    HeadKeys keys = keys_of(0, heads.keys.first);
    for (int64_t key = heads.keys.first; key < heads.keys.end; key += kTileKeys) {
        for (int64_t h = 0; h < heads.num_heads; ++h) {
            const bool is_last = h + 1 == heads.num_heads;
            const HeadKeys next = keys_of(is_last ? 0 : h + 1, is_last ? key + kTileKeys : key);
            attend_few<format, R>(keys, next, rows_of_head(heads, h), memory);
            keys = next;
        }
    }
}

template <int32_t format>
void attend_token_of(const TokenHeads& heads, void* memory) {
    switch (heads.rows.heads) {
        case 2: return attend_heads<format, 2>(heads, memory);
        case 3: return attend_heads<format, 3>(heads, memory);
        case 4: return attend_heads<format, 4>(heads, memory);
        case 6: return attend_heads<format, 6>(heads, memory);
        case 8: return attend_heads<format, 8>(heads, memory);
        default: __builtin_trap();  // not are_few_heads
    }
}

inline void attend_token(const TokenHeads& heads, void* memory) {
    switch (heads.keys.cache.format) {
        case M2_KV_F32: return attend_token_of<M2_KV_F32>(heads, memory);
        case M2_KV_BF16: return attend_token_of<M2_KV_BF16>(heads, memory);
        case M2_KV_INT8: return attend_token_of<M2_KV_INT8>(heads, memory);
        default: return attend_token_of<M2_KV_FP8>(heads, memory);
    }
}

}  // namespace
}  // namespace m2::M2_ISA
