// AVX-512 in software, so that its kernels can be tested on a machine without it (cmake
// -DM2_EMULATE_AVX512=ON, needs the SIMDe headers). Far too slow for anything else.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace m2::M2_ISA {
namespace {

template <class To, class From, class Lane>
inline To emulated_lanes(const From& from, Lane lane) {
    Lane in[sizeof(From) / sizeof(Lane)];
    To to;
    float floats[16];
    int32_t ints[16];
    std::memcpy(in, &from, sizeof(From));
    for (int i = 0; i < 16; ++i) {
        floats[i] = static_cast<float>(in[i]);
        ints[i] = static_cast<int32_t>(std::nearbyint(in[i]));
    }
    (void)lane;
    if constexpr (std::is_same_v<To, simde__m512>) {
        std::memcpy(&to, floats, 64);
    } else {
        std::memcpy(&to, ints, 64);
    }
    return to;
}
inline simde__m512i emulated_srai(simde__m512i value, int by) {
    int32_t lanes[16];
    std::memcpy(lanes, &value, 64);
    for (int32_t& lane : lanes) lane >>= by;
    std::memcpy(&value, lanes, 64);
    return value;
}
#define _mm512_srai_epi32(a, by) emulated_srai(a, by)
#define _mm512_shuffle_f32x4(a, b, parts) simde_mm512_shuffle_f32x4(a, b, parts)
#define _mm512_cvtepi32_ps(a) emulated_lanes<simde__m512>(a, int32_t{})
#define _mm512_cvtps_epi32(a) emulated_lanes<simde__m512i>(a, float{})
#define _mm512_cvtepu16_epi32(a) emulated_lanes<simde__m512i>(a, uint16_t{})
#define _mm512_cvtepu8_epi32(a) emulated_lanes<simde__m512i>(a, uint8_t{})

inline simde__m512 emulated_cvtph_ps(__m256i halves) {
    float values[16];
    _mm256_storeu_ps(values, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
    _mm256_storeu_ps(values + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
    return simde_mm512_loadu_ps(values);
}

inline void emulated_store_bf16(uint16_t* to, simde__m512 low, simde__m512 high) {
    uint32_t bits[32];
    std::memcpy(bits, &low, 64);
    std::memcpy(bits + 16, &high, 64);
    for (int i = 0; i < 32; ++i) {
        const bool is_nan = (bits[i] & 0x7FFFFFFF) > 0x7F800000;
        const uint32_t rounded = (bits[i] + 0x7FFF + (bits[i] >> 16 & 1)) >> 16;
        to[i] = static_cast<uint16_t>(is_nan ? 0x7FC0 : rounded);
    }
}

// The real instruction flushes subnormal inputs and results to zero.
inline float emulated_bf16(uint16_t bits) {
    const uint32_t wide = (bits & 0x7F80) == 0 ? 0u : static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
inline simde__m512 emulated_dot_bf16(simde__m512 acc, simde__m512i w, simde__m512i x) {
    uint16_t a[32], b[32];
    float sums[16];
    std::memcpy(a, &w, 64);
    std::memcpy(b, &x, 64);
    std::memcpy(sums, &acc, 64);
    for (int i = 0; i < 16; ++i) {
        sums[i] = std::fma(emulated_bf16(a[2 * i + 1]), emulated_bf16(b[2 * i + 1]), sums[i]);
        sums[i] = std::fma(emulated_bf16(a[2 * i]), emulated_bf16(b[2 * i]), sums[i]);
        if (std::fpclassify(sums[i]) == FP_SUBNORMAL) sums[i] = 0.0f;
    }
    return simde_mm512_loadu_ps(sums);
}

}  // namespace
}  // namespace m2::M2_ISA
