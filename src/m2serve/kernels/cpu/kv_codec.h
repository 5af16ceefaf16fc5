// Keys and values between float32 and the formats of the cache.
#pragma once

#include <cmath>
#include <cstring>

#include "exponential.h"
#include "token_types.h"

namespace m2::M2_ISA {
namespace {

template <int32_t format>
inline F kv_floats(const uint8_t* from) {
    if constexpr (format == M2_KV_F32) return load(reinterpret_cast<const float*>(from));
    if constexpr (format == M2_KV_BF16) return bf16_floats(reinterpret_cast<const uint16_t*>(from));
    const Ints top = (Ints)bytes_to_int32(from) << 24;
    if constexpr (format == M2_KV_INT8) {
        return (F)__builtin_convertvector(top >> 24, Floats);
    }
    // Exponent and mantissa of E4M3 land in those of a float, 2^120 times smaller. The code of NaN
    // becomes all ones.
    const Ints bits = (top >> 4) & static_cast<int32_t>(0x87F00000);
    const Ints is_nan = (bits & 0x07F00000) == 0x07F00000;
    return (F)((Ints)((Floats)bits * 0x1p120f) | is_nan);
}

// Goes through the vectors of positions first.. in order: their distance from the head's first.
class Vectors {
  public:
    Vectors(const HeadCache& cache, int64_t first)
        : block_(cache.blocks + first / cache.block_size),
          offset_(first % cache.block_size),
          size_(cache.block_size),
          all_heads_(cache.block_size * cache.kv_heads) {}

    int64_t next() {
        if (offset_ == size_) {
            offset_ = 0;
            ++block_;
        }
        return *block_ * all_heads_ + offset_++;
    }

  private:
    const int32_t* block_;
    int64_t offset_, size_, all_heads_;
};

// Asks for the vectors of positions first.. ahead of their use.
inline void prefetch_heads(const HeadCache& cache, const uint8_t* base, int64_t first,
                           int64_t count) {
    const int64_t bytes = cache.head_dim * kv_element_bytes(cache.format);
    Vectors vectors(cache, first);
    for (int64_t j = 0; j < count; ++j) {
        const uint8_t* from = base + vectors.next() * bytes;
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, 0, 2);
    }
}

// One vector as padded floats.
template <int32_t format>
inline void load_head(const uint8_t* from, int64_t head_dim, float scale, float* to) {
    constexpr int64_t kSize = kv_element_bytes(format);
    const F factor = splat(scale);
    const auto convert = [&](const uint8_t* source, float* target) {
        const F value = kv_floats<format>(source);
        store(target, format == M2_KV_INT8 ? mul(value, factor) : value);
    };
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) convert(from + d * kSize, to + d);
    if (d < head_dim) {
        uint8_t rest[kLanes * kSize] = {};
        std::memcpy(rest, from + d * kSize, static_cast<size_t>((head_dim - d) * kSize));
        convert(rest, to + d);
        d += kLanes;
    }
    for (; d < padded_head(head_dim); d += kLanes) store(to + d, zero());
}

template <int32_t format>
inline void load_heads_of(const HeadCache& cache, const uint8_t* base, const float* scales,
                          int64_t first, int64_t count, float* tile, const float** vectors) {
    const int64_t padded = padded_head(cache.head_dim);
    const bool in_place = format == M2_KV_F32 && padded == cache.head_dim;
    Vectors places(cache, first);
    for (int64_t j = 0; j < count; ++j) {
        const int64_t place = places.next();
        const uint8_t* from = base + place * cache.head_dim * kv_element_bytes(format);
        if (in_place) {
            vectors[j] = reinterpret_cast<const float*>(from);
            continue;
        }
        const float scale = format == M2_KV_INT8 ? scales[place] : 1.0f;
        load_head<format>(from, cache.head_dim, scale, tile + j * padded);
        vectors[j] = tile + j * padded;
    }
}

// Heads of positions first.. as float vectors: in the cache where it is float32, else in `tile`.
inline void load_heads(const HeadCache& cache, const uint8_t* base, const float* scales,
                       int64_t first, int64_t count, float* tile, const float** vectors) {
    switch (cache.format) {
        case M2_KV_F32:
            return load_heads_of<M2_KV_F32>(cache, base, scales, first, count, tile, vectors);
        case M2_KV_BF16:
            return load_heads_of<M2_KV_BF16>(cache, base, scales, first, count, tile, vectors);
        case M2_KV_INT8:
            return load_heads_of<M2_KV_INT8>(cache, base, scales, first, count, tile, vectors);
        default: return load_heads_of<M2_KV_FP8>(cache, base, scales, first, count, tile, vectors);
    }
}

inline uint16_t bf16_code(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Round to nearest even, saturating.
inline uint8_t e4m3_code(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
    const float size = std::fabs(value);
    if (size != size) return 0x7F;
    if (size >= 448.0f) return sign | 0x7E;
    if (size < 0x1p-6f) {  // multiples of 2^-9: adding 2^14 leaves them in the last places
        const float shifted = size + 0x1p14f;
        uint32_t places;
        std::memcpy(&places, &shifted, 4);
        return static_cast<uint8_t>(sign | (places & 0xFF));
    }
    const uint32_t rest = bits & 0x7FFFFFFF;
    const uint32_t rounded = rest + 0x7FFFF + (rest >> 20 & 1);
    return static_cast<uint8_t>(sign | ((rounded >> 20) - (120 << 3)));
}

// A scale of NaN marks a head that holds one.
inline void store_int8(const float* from, int64_t head_dim, int8_t* to, float* scale) {
    float most = 0;
    bool finite = true;
    for (int64_t d = 0; d < head_dim; ++d) {
        const float size = std::fabs(from[d]);
        finite = finite && size <= 3.4028234e38f;
        most = size > most ? size : most;
    }
    *scale = finite ? most / 127.0f : __builtin_nanf("");
    const float inverse = finite && most > 1e-36f ? 127.0f / most : 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) {
        to[d] = finite ? static_cast<int8_t>(std::nearbyint(from[d] * inverse)) : 0;
    }
}

void store_head(int32_t format, const float* from, int64_t head_dim, void* to, float* scale) {
    switch (format) {
        case M2_KV_F32: std::memcpy(to, from, static_cast<size_t>(head_dim) * 4); break;
        case M2_KV_BF16:
            for (int64_t d = 0; d < head_dim; ++d) {
                static_cast<uint16_t*>(to)[d] = bf16_code(from[d]);
            }
            break;
        case M2_KV_INT8: store_int8(from, head_dim, static_cast<int8_t*>(to), scale); break;
        default:
            for (int64_t d = 0; d < head_dim; ++d) {
                static_cast<uint8_t*>(to)[d] = e4m3_code(from[d]);
            }
    }
}

}  // namespace
}  // namespace m2::M2_ISA
