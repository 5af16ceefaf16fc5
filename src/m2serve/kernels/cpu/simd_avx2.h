// The vector operations the kernels are written in, for AVX2, FMA and F16C.
//
// A translation unit defines M2_ISA and includes one simd_*.h, then the kernels. Everything lies in
// an unnamed namespace, so that no function compiled for one instruction set is linked into another.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace m2::M2_ISA {
namespace {

using F = __m256;   // float lanes
using I = __m256i;  // bytes, or int32 lanes

constexpr int kLanes = 8;
constexpr int kBytes = 32;
// Signed bytes times signed bytes needs no offset here: the sign moves to the other operand.
constexpr int kInt8Zero = 0;
constexpr bool kHasBf16Dot = false;
// Rows of activations whose sums with a panel of weights are in registers, and columns at a time.
constexpr int kPanelTokens = 6;
constexpr int kPanelUnroll = 4;

inline F zero() { return _mm256_setzero_ps(); }
inline F splat(float value) { return _mm256_set1_ps(value); }
inline F load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, F value) { _mm256_storeu_ps(to, value); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
struct TwoSums {
    F a, b;
};
// The sums and what u and v are times x. Written out: GCC 12 would load several columns' numbers before
// it multiplies any, and has no registers for so many. By value: by reference it keeps them in memory.
inline TwoSums add_products(TwoSums sums, F u, F v, const float& x) {
    F a = sums.a, b = sums.b, value;
    asm("vbroadcastss %[x], %[value]\n\t"
        "vfmadd231ps %[value], %[u], %[a]\n\tvfmadd231ps %[value], %[v], %[b]"
        : [a] "+x"(a), [b] "+x"(b), [value] "=&x"(value)
        : [u] "x"(u), [v] "x"(v), [x] "m"(x));
    return {a, b};
}
inline F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }

inline F round_to_even(F value) {
    return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Per lane the larger of a and |b|.
inline F max_abs(F a, F b) { return _mm256_max_ps(a, _mm256_andnot_ps(splat(-0.0f), b)); }
inline float largest(F value) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline float sum(F value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
// Lane i is the sum of vector i.
inline F sums_of(const F (&v)[kLanes]) {
    F a[4], b[2];
    for (int i = 0; i < 4; ++i) {
        a[i] = add(_mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                   _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    }
    for (int i = 0; i < 2; ++i) {
        b[i] = add(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                   _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xEE));
    }
    return add(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31));
}

// Lane i of vector j becomes lane j of vector i.
inline void transpose(F (&v)[kLanes]) {
    F a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

// Even lanes of both to a, odd ones to b.
inline void unzip(F& a, F& b) {
    const auto in_order = [](F value) {
        return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(value), 0xD8));
    };
    const F even = _mm256_shuffle_ps(a, b, 0x88), odd = _mm256_shuffle_ps(a, b, 0xDD);
    a = in_order(even);
    b = in_order(odd);
}
// The other way round.
inline void zip(F& a, F& b) {
    const F low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    a = _mm256_permute2f128_ps(low, high, 0x20);
    b = _mm256_permute2f128_ps(low, high, 0x31);
}

inline I load_bytes(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store_bytes(void* to, I value) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}
// Integers within -128..127 as kLanes bytes.
inline void store_int8(int8_t* to, F value) {
    const I wide = _mm256_cvtps_epi32(value);
    const __m128i half =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(half, half));
}
inline I low_nibbles(I packed) { return _mm256_and_si256(packed, _mm256_set1_epi8(15)); }
inline I high_nibbles(I packed) { return low_nibbles(_mm256_srli_epi16(packed, 4)); }
inline I table16(const int8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
inline I look_up(I table, I codes) { return _mm256_shuffle_epi8(table, codes); }

// Signed byte b of every 32-bit lane, times 2^24.
template <int b>
inline F byte_to_float(I bytes) {
    I top = b == 3 ? bytes : _mm256_slli_epi32(bytes, 24 - 8 * b);
    if (b > 0) top = _mm256_and_si256(top, _mm256_set1_epi32(static_cast<int>(0xFF000000)));
    return _mm256_cvtepi32_ps(top);
}

inline F bf16_even(I pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline F bf16_odd(I pairs) {
    const I mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, mask));
}
template <int half>
inline F f16_half(I halves) {
    return _mm256_cvtph_ps(_mm256_extracti128_si256(halves, half));
}
// Of the E4M3 numbers in the even (v < 2) or odd bytes those in half v % 2 of the vector, times 2^-8.
template <int v>
inline F e4m3_to_float(I bytes) {
    const I top = v < 2 ? _mm256_slli_epi16(bytes, 8) : bytes;
    const I mask = _mm256_set1_epi16(static_cast<int16_t>(0xBF80));
    return f16_half<v % 2>(_mm256_and_si256(_mm256_srai_epi16(top, 1), mask));
}
inline F as_float(I bits) { return _mm256_castsi256_ps(bits); }
inline I as_bits(F value) { return _mm256_castps_si256(value); }

inline I no_integers() { return _mm256_setzero_si256(); }
inline F integers_to_floats(I lanes) { return _mm256_cvtepi32_ps(lanes); }
inline I splat_bits(int32_t bits) { return _mm256_set1_epi32(bits); }
inline I add_integers(I a, I b) { return _mm256_add_epi32(a, b); }
// Per lane the sum over its four bytes of (w + kInt8Zero) * x, added to `sum`.
inline I add_int8(I sum, I w, I x) {
    const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return add_integers(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Per lane the four products of unsigned and signed bytes, added to `sum`: two and two in 16 bits,
// until they are finished.
constexpr bool kQuadsAreWide = false;
// Rows of int8 activations that meet a slab at once: their sums are in registers.
constexpr int kSlabTokens = 4;
// The same for a tile: two slabs at once, and the sums of groups may leave the registers.
constexpr int kInt8Tokens = 4;
// Sums that stay in registers beside what they are made of.
constexpr int kSumsAtOnce = 8;
// What is loaded once is not loaded again for every use, which is what GCC makes of it.
inline void stay_in_register(F& value) { asm("" : "+x"(value)); }
inline I quads_of(I u, I x) { return _mm256_maddubs_epi16(u, x); }
// Written out: GCC 12 would make the products of a whole group before it adds them, and has no
// registers for so many.
inline I add_quads(I sum, I u, I x) {
    I pairs;
    asm("vpmaddubsw %[x], %[u], %[pairs]\n\tvpaddw %[pairs], %[sum], %[sum]"
        : [sum] "+x"(sum), [pairs] "=&x"(pairs)
        : [u] "x"(u), [x] "x"(x));
    return sum;
}
inline I finish_quads(I sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

// The groups of a superblock, arranged once, so that those of every unit are a cheap shuffle away
// (one across the halves of a vector is slow on some processors): spread_groups<l, u> has group
// u * kLanes / 2^l + i / 2^l in lane i.
template <int log2_lanes_per_group>
inline F arrange_groups(F groups) {
    const I order = log2_lanes_per_group == 1 ? _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7)
                                              : _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm256_permutevar8x32_ps(groups, order);
}
template <int log2_lanes_per_group, int unit>
inline F spread_groups(F arranged) {
    constexpr int pairs = unit == 0 ? 0x50 : 0xFA;
    return _mm256_permute_ps(arranged, log2_lanes_per_group == 1 ? pairs : unit * 0x55);
}

inline F permute(F value, I lanes) { return _mm256_permutevar8x32_ps(value, lanes); }
// Lane i reads group first + i / lanes_per_group.
inline I group_of_lane(int first, int log2_lanes_per_group) {
    const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_add_epi32(_mm256_srl_epi32(lane, _mm_cvtsi32_si128(log2_lanes_per_group)),
                            _mm256_set1_epi32(first));
}

inline I bytes_to_int32(const uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
inline F bytes_to_floats(const uint8_t* from) { return _mm256_cvtepi32_ps(bytes_to_int32(from)); }
// E4M3 shifted into a half is 2^-8 of itself, subnormals included.
inline F small_e4m3_floats(const uint8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m128i halves = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
    return _mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(~0x4000)));
}
inline F e4m3_floats(const uint8_t* from) { return mul(small_e4m3_floats(from), splat(0x1p8f)); }
inline F e8m0_floats(const uint8_t* from) {
    const I power = _mm256_slli_epi32(bytes_to_int32(from), 23);
    return as_float(_mm256_max_epi32(power, _mm256_set1_epi32(0x00400000)));  // 0 is 2^-127
}
inline F bf16_floats(const uint16_t* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return as_float(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F f16_floats(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

}  // namespace
}  // namespace m2::M2_ISA
