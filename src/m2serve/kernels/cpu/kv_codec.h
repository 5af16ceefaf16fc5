// Keys and values between float32 and the formats of the cache.
#pragma once

#include <cmath>
#include <cstring>

#include "bf16.h"
#include "each.h"
#include "exponential.h"
#include "token_types.h"
#include "unit.h"

namespace m2::M2_ISA {
namespace {

// A unit is a vector of the cache: kBytes bytes, or kLanes times kParts numbers. Part p has the p-th
// number of every four bytes.
template <int32_t format>
constexpr int kParts = 4 / kv_element_bytes(format);

template <int32_t format, int part>
inline F kv_part(I unit) {
    if constexpr (format == M2_KV_F32) return as_float(unit);
    if constexpr (format == M2_KV_BF16) return part == 0 ? bf16_even(unit) : bf16_odd(unit);
    const Ints top = (Ints)unit << (24 - 8 * part);
    if constexpr (format == M2_KV_INT8) {
        return (F)__builtin_convertvector(top >> 24, Floats);
    }
    // Exponent and mantissa of E4M3 land in those of a float, whose exponent has 120 added: right but
    // for subnormals, m / 8 * 2^-6, which are (1 + m / 8) * 2^-7 then. Twice that less 2^-6 is right for
    // them and too much for all others. No float on the way is subnormal: products of those trap into
    // microcode on some processors. The code of NaN becomes all ones.
    const Ints code = (top >> 4) & 0x07F00000;
    const Floats normal = (Floats)(code + (120 << 23)), subnormal = normal * 2.0f - 0x1p-6f;
    const Ints size = (Ints)(subnormal < normal ? subnormal : normal);
    return (F)(size | (top & INT32_MIN) | (code == 0x07F00000));
}

// Where the vectors of positions first.. lie: their distance from the head's first vector.
inline void find_places(const HeadCache& cache, int64_t first, int64_t count, int64_t* places) {
    const int32_t* block = cache.blocks + first / cache.block_size;
    int64_t offset = first % cache.block_size;
    for (int64_t j = 0; j < count; ++block, offset = 0) {
        const int64_t here = *block * cache.block_size * cache.kv_heads;
        for (; offset < cache.block_size && j < count; ++offset) places[j++] = here + offset;
    }
}

// Keys or values of one head.
struct HeadVectors {
    const uint8_t* base;
    int64_t bytes;  // of a vector

    HeadVectors(const HeadCache& cache, const uint8_t* base)
        : base(base), bytes(cache.head_dim * kv_element_bytes(cache.format)) {}

    const uint8_t* at(int64_t place) const { return base + place * bytes; }
};

constexpr int64_t kTurned = 2 * kLanes;

// kLanes keys turned about: dimension d of key j goes to tile[d * kTurned + j].
template <int32_t format>
inline void turn_keys(const HeadVectors& keys, const int64_t* places, float* tile) {
    for (int64_t b = 0; b < keys.bytes; b += kBytes) {
        F square[kLanes];
        each<kLanes>([&](auto j) {
            square[j] = as_float(load_unit(keys.at(places[j]) + b, keys.bytes - b));
        });
        transpose(square);
        float* to = tile + b / kv_element_bytes(format) * kTurned;
        each<kLanes>([&](auto i) {
            each<kParts<format>>([&](auto part) {
                const F value = kv_part<format, part>(as_bits(square[i]));
                store(to + (i * kParts<format> + part) * kTurned, value);
            });
        });
    }
}

// What one pass over the values takes: two vectors of floats, or four of one unit.
template <int32_t format>
constexpr int kPassBytes = format == M2_KV_F32 ? 2 * kBytes : kBytes;

// Pointers to the values of the places; in `aside` where a vector is no whole number of passes.
template <int32_t format>
inline void find_values(const HeadVectors& values, const int64_t* places, int64_t count,
                        uint8_t* aside, const uint8_t** vectors) {
    constexpr int64_t kPass = kPassBytes<format>;
    const int64_t padded = (values.bytes + kPass - 1) / kPass * kPass;
    for (int64_t j = 0; j < count; ++j) {
        vectors[j] = values.at(places[j]);
        if (padded == values.bytes) continue;
        std::memcpy(aside + j * padded, vectors[j], static_cast<size_t>(values.bytes));
        std::memset(aside + j * padded + values.bytes, 0,
                    static_cast<size_t>(padded - values.bytes));
        vectors[j] = aside + j * padded;
    }
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

inline void store_head(int32_t format, const float* from, int64_t head_dim, void* to, float* scale) {
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
