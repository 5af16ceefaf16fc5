// The operations of simd_avx2.h for AVX-512 F, BW, VL, VNNI and BF16.
#pragma once

#ifdef M2_EMULATE_AVX512
#include "emulated_avx512.h"
#else
#include <immintrin.h>
#endif

#include <cstdint>

namespace m2::M2_ISA {
namespace {

using F = __m512;
using I = __m512i;

constexpr int kLanes = 16;
constexpr int kBytes = 64;
// vpdpbusd wants unsigned bytes: w ^ 0x80 is w + 128.
constexpr int kInt8Zero = 128;
constexpr bool kHasBf16Dot = true;
// Rows of activations whose sums with a panel of weights are in registers.
constexpr int kPanelTokens = 12;
constexpr int kPanelUnroll = 1;
// The same of bfloat16 activations and rows of a tile.
constexpr int kTileTokens = 6, kTileRows = 4;

inline F zero() { return _mm512_setzero_ps(); }
inline F splat(float value) { return _mm512_set1_ps(value); }
inline F load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, F value) { _mm512_storeu_ps(to, value); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
struct TwoSums {
    F a, b;
};
// The sums and what u and v are times x.
inline TwoSums add_products(TwoSums sums, F u, F v, const float& x) {
    const F value = splat(x);
    return {fma(u, value, sums.a), fma(v, value, sums.b)};
}
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }

inline F round_to_even(F value) {
    return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F max_abs(F a, F b) { return _mm512_max_ps(a, _mm512_abs_ps(b)); }
inline __m256 high_half(F value) {
    return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(value), 1));
}
inline float largest(F value) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(value), high_half(value));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

inline float sum(F value) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(value), high_half(value));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline __m128 sum4(const F* v) {
    const auto half = [](F value) {
        return _mm256_add_ps(_mm512_castps512_ps256(value), high_half(value));
    };
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half(v[0]), half(v[1])),
                                        _mm256_hadd_ps(half(v[2]), half(v[3])));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// Lane i is the sum of vector i.
inline F sums_of(const F (&v)[kLanes]) {
    F a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i) {
        a[i] = add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                   _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
        b[i] = add(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                   _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xEE));
    }
    for (int i = 0; i < 2; ++i) {
        c[i] = add(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x44),
                   _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xEE));
    }
    return add(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xDD));
}

inline void transpose(F (&v)[kLanes]) {
    F a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // b[i + c]: column c of four rows, in every quarter
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xEE);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        const F even = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        const F odd = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
        const F even_behind = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        const F odd_behind = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
        v[i] = _mm512_shuffle_f32x4(even, even_behind, 0x88);
        v[i + 8] = _mm512_shuffle_f32x4(even, even_behind, 0xDD);
        v[i + 4] = _mm512_shuffle_f32x4(odd, odd_behind, 0x88);
        v[i + 12] = _mm512_shuffle_f32x4(odd, odd_behind, 0xDD);
    }
}

// As in simd_avx2.h.
inline void unzip(F& a, F& b) {
    const I even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const F first = _mm512_permutex2var_ps(a, even, b);
    b = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
    a = first;
}
inline void zip(F& a, F& b) {
    const I low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const F first = _mm512_permutex2var_ps(a, low, b);
    b = _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
    a = first;
}

inline I load_bytes(const void* from) { return _mm512_loadu_si512(from); }
inline void store_bytes(void* to, I value) { _mm512_storeu_si512(to, value); }
inline void store_int8(int8_t* to, F value) {
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
inline I low_nibbles(I packed) { return _mm512_and_si512(packed, _mm512_set1_epi8(15)); }
inline I high_nibbles(I packed) { return low_nibbles(_mm512_srli_epi16(packed, 4)); }
inline I table16(const int8_t* values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
inline I look_up(I table, I codes) { return _mm512_shuffle_epi8(table, codes); }

template <int b>
inline F byte_to_float(I bytes) {
    I top = b == 3 ? bytes : _mm512_slli_epi32(bytes, 24 - 8 * b);
    if (b > 0) top = _mm512_and_si512(top, _mm512_set1_epi32(static_cast<int>(0xFF000000)));
    return _mm512_cvtepi32_ps(top);
}

inline F as_float(I bits) { return _mm512_castsi512_ps(bits); }
inline I as_bits(F value) { return _mm512_castps_si512(value); }
inline F bf16_even(I pairs) { return as_float(_mm512_slli_epi32(pairs, 16)); }
inline F bf16_odd(I pairs) {
    return as_float(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}
inline F f16_to_float(__m256i halves) {
#ifdef M2_EMULATE_AVX512
    return emulated_cvtph_ps(halves);
#else
    return _mm512_cvtph_ps(halves);
#endif
}
template <int half>
inline F f16_half(I halves) {
    return f16_to_float(_mm512_extracti64x4_epi64(halves, half));
}
// Of the E4M3 numbers in the even (v < 2) or odd bytes those in half v % 2 of the vector, times 2^-8.
template <int v>
inline F e4m3_to_float(I bytes) {
    const I top = v < 2 ? _mm512_slli_epi16(bytes, 8) : bytes;
    const I mask = _mm512_set1_epi16(static_cast<int16_t>(0xBF80));
    return f16_half<v % 2>(_mm512_and_si512(_mm512_srai_epi16(top, 1), mask));
}

inline I no_integers() { return _mm512_setzero_si512(); }
inline F integers_to_floats(I lanes) { return _mm512_cvtepi32_ps(lanes); }
inline I splat_bits(int32_t bits) { return _mm512_set1_epi32(bits); }
inline I add_integers(I a, I b) { return _mm512_add_epi32(a, b); }
inline I add_int8(I sum, I w, I x) {
    const I shifted = _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80)));
    return _mm512_dpbusd_epi32(sum, shifted, x);
}
constexpr bool kQuadsAreWide = true;
constexpr int kSlabTokens = 8;
constexpr int kInt8Tokens = 3;
// Sums that stay in registers beside what they are made of.
constexpr int kSumsAtOnce = 16;
// What is loaded once is not loaded again for every use, which is what GCC makes of it.
inline void stay_in_register(F& value) {
#ifndef M2_EMULATE_AVX512
    asm("" : "+v"(value));
#endif
}
inline I quads_of(I u, I x) { return _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, x); }
inline I add_quads(I sum, I u, I x) { return _mm512_dpbusd_epi32(sum, u, x); }
inline I finish_quads(I sum) { return sum; }

inline F permute(F value, I lanes) { return _mm512_permutexvar_ps(lanes, value); }
inline I group_of_lane(int first, int log2_lanes_per_group) {
    const I lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(_mm512_srl_epi32(lane, _mm_cvtsi32_si128(log2_lanes_per_group)),
                            _mm512_set1_epi32(first));
}

// As in simd_avx2.h; here a shuffle across the whole vector is as cheap as any.
template <int log2_lanes_per_group>
inline F arrange_groups(F groups) {
    return groups;
}
template <int log2_lanes_per_group, int unit>
inline F spread_groups(F groups) {
    constexpr int first = unit * (kLanes >> log2_lanes_per_group);
    return permute(groups, group_of_lane(first, log2_lanes_per_group));
}

inline I bytes_to_int32(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline F bytes_to_floats(const uint8_t* from) { return _mm512_cvtepi32_ps(bytes_to_int32(from)); }
// E4M3 shifted into a half is 2^-8 of itself, subnormals included.
inline F small_e4m3_floats(const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i halves = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    return f16_to_float(_mm256_and_si256(halves, _mm256_set1_epi16(~0x4000)));
}
inline F e4m3_floats(const uint8_t* from) { return mul(small_e4m3_floats(from), splat(0x1p8f)); }
inline F e8m0_floats(const uint8_t* from) {
    const I power = _mm512_slli_epi32(bytes_to_int32(from), 23);
    return as_float(_mm512_max_epi32(power, _mm512_set1_epi32(0x00400000)));
}
inline F bf16_floats(const uint16_t* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline F f16_floats(const uint16_t* from) {
    return f16_to_float(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// 2 * kLanes values rounded to nearest even, `low` first.
inline void store_bf16(uint16_t* to, F low, F high) {
#ifdef M2_EMULATE_AVX512
    emulated_store_bf16(to, low, high);
#else
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
#endif
}
// Per lane the two products of bf16 pairs, added to `acc`; subnormals count as zero.
inline F dot_bf16(F acc, I w, I x) {
#ifdef M2_EMULATE_AVX512
    return emulated_dot_bf16(acc, w, x);
#else
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
#endif
}

}  // namespace
}  // namespace m2::M2_ISA
