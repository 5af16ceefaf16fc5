// Blocks of 64 x 64 numbers, their products in the tile registers of AMX, and how they come and go.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using Number = uint16_t;  // bfloat16
constexpr int64_t kSide = 64;
constexpr int64_t kBlock = kSide * kSide;
constexpr int64_t kLanes = 16;
constexpr int64_t kTile = 16 * 32;  // numbers of a tile register

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    constexpr TileConfig() {
        for (int i = 0; i < 8; ++i) {
            row_bytes[i] = 64;
            rows[i] = 16;
        }
    }
};

struct TileRegisters {
    TileRegisters() {
        static constexpr TileConfig config;
        _tile_loadconfig(&config);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// A block of 64 x 64 as the right side of a product: terms in pairs, [2, 4, 16, 16 columns, 2].
struct alignas(64) RightBlock {
    Number numbers[kBlock];
};
struct alignas(64) LeftBlock {  // [64 rows, 64 terms]
    Number numbers[kBlock];
};
struct alignas(64) FloatBlock {  // [64, 64]
    float numbers[kBlock];
};

// GCC's loads of tiles do not say that they read memory.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// to [64, 64] = (adds ? to : 0) + left * right
template <bool adds>
inline void multiply(const LeftBlock& left, const RightBlock& right, FloatBlock& to) {
    finish_stores();
    for (int64_t row = 0; row < kSide; row += 16) {
        float* out = to.numbers + row * kSide;
        if constexpr (adds) {
            _tile_loadd(0, out, kSide * 4);
            _tile_loadd(1, out + 16, kSide * 4);
            _tile_loadd(2, out + 32, kSide * 4);
            _tile_loadd(3, out + 48, kSide * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t half = 0; half < 2; ++half) {
            const Number* columns = right.numbers + half * 4 * kTile;
            _tile_loadd(4, left.numbers + row * kSide + half * 32, kSide * 2);
            _tile_loadd(5, columns, 64);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(6, columns + kTile, 64);
            _tile_dpbf16ps(1, 4, 6);
            _tile_loadd(7, columns + 2 * kTile, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, columns + 3 * kTile, 64);
            _tile_dpbf16ps(3, 4, 5);
        }
        _tile_stored(0, out, kSide * 4);
        _tile_stored(1, out + 16, kSide * 4);
        _tile_stored(2, out + 32, kSide * 4);
        _tile_stored(3, out + 48, kSide * 4);
    }
    finish_stores();
}

inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline __m512 widened(const Number* from) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// Two rows of 32 numbers as 32 pairs.
inline void store_pairs(__m512i even, __m512i odd, Number* low, Number* high) {
    alignas(64) static constexpr int16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                     37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                     11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i order = _mm512_load_si512(kLow);
    const __m512i next = _mm512_add_epi16(order, _mm512_set1_epi16(16));
    _mm512_store_si512(low, _mm512_permutex2var_epi16(even, order, odd));
    _mm512_store_si512(high, _mm512_permutex2var_epi16(even, next, odd));
}

// Rows are terms.
inline void pack_rows(const LeftBlock& from, RightBlock& to) {
    for (int64_t row = 0; row < kSide; row += 2) {
        const Number* even = from.numbers + row * kSide;
        Number* at = to.numbers + row / 32 * 4 * kTile + row % 32 / 2 * 32;
        for (int64_t half = 0; half < 2; ++half) {
            const __m512i first = _mm512_load_si512(even + half * 32);
            const __m512i second = _mm512_load_si512(even + kSide + half * 32);
            store_pairs(first, second, at + 2 * half * kTile, at + (2 * half + 1) * kTile);
        }
    }
}

// Columns are terms: `from` turned about.
inline void pack_transposed(const LeftBlock& from, RightBlock& to) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i rows = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(kSide / 2));
    for (int64_t pair = 0; pair < kSide / 2; ++pair) {
        Number* at = to.numbers + pair / 16 * 4 * kTile + pair % 16 * 32;
        for (int64_t tile = 0; tile < 4; ++tile) {
            const Number* column = from.numbers + tile * 16 * kSide + pair * 2;
            _mm512_store_si512(at + tile * kTile, _mm512_i32gather_epi32(rows, column, 4));
        }
    }
}

template <class Block>
inline void transpose(const Block& from, Block& to) {
    for (int64_t i = 0; i < kSide; ++i) {
        for (int64_t j = 0; j < kSide; ++j) to.numbers[j * kSide + i] = from.numbers[i * kSide + j];
    }
}

// Rows of a head; behind `count` of them 0.
inline void load_rows(const Number* from, int64_t stride, int64_t count, LeftBlock& to) {
    for (int64_t row = 0; row < kSide; ++row) {
        if (row < count) {
            std::memcpy(to.numbers + row * kSide, from + row * stride, kSide * 2);
        } else {
            std::memset(to.numbers + row * kSide, 0, kSide * 2);
        }
    }
}

inline void store_rows(const FloatBlock& from, float scale, int64_t count, Number* to,
                       int64_t stride) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t row = 0; row < count; ++row) {
        const float* numbers = from.numbers + row * kSide;
        for (int64_t half = 0; half < 2; ++half) {
            const __m512 low = _mm512_mul_ps(_mm512_load_ps(numbers + half * 32), factor);
            const __m512 high = _mm512_mul_ps(_mm512_load_ps(numbers + half * 32 + 16), factor);
            _mm512_storeu_si512(to + row * stride + half * 32, rounded(low, high));
        }
    }
}

// 2^x for x <= 0 or little more, by a polynomial around the nearest integer (relative error 3e-6);
// 2^-126 for all that is less, NaN for NaN.
inline __m512 exp2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // the second where one is NaN
    const __m512 whole = _mm512_roundscale_ps(x, 8);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.33335581e-3f);
    for (const float next : {9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f, 1.0f}) {
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(next));
    }
    return _mm512_scalef_ps(sum, whole);
}

inline __mmask16 lanes_below(int64_t count) {
    return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kLanes)) - 1);
}

}  // namespace
