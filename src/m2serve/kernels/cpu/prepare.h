// Activations in the order in which the codes of a format unfold.
#pragma once

#include <cmath>

#include "matmul.h"
#include "zip.h"

namespace m2::M2_ISA {
namespace {

// A unit is kPieces times kParts vectors. Of every piece the columns are taken apart, each kParts-th
// to one vector, which is vector(piece, part) of the unit: natural, or as the bytes of 32-bit lanes
// come apart.
struct Natural {
    static constexpr int kPieces = 2, kParts = 1;
    static constexpr int vector(int piece, int) { return piece; }
};
struct Pairs {
    static constexpr int kPieces = 1, kParts = 2;
    static constexpr int vector(int, int part) { return part; }
};
struct Quads {
    static constexpr int kPieces = 1, kParts = 4;
    static constexpr int vector(int, int part) { return part; }
};
struct Bytes {  // the even columns of either half, then the odd ones
    static constexpr int kPieces = 2, kParts = 2;
    static constexpr int vector(int piece, int part) { return 2 * part + piece; }
};
struct Nibbles {  // the even columns' four bytes, then the odd ones'
    static constexpr int kPieces = 1, kParts = 8;
    static constexpr int vector(int, int part) { return part / 2 + part % 2 * 4; }
};

inline void put_two(float* to, F low, F high) {
    store(to, low);
    store(to + kLanes, high);
}
#ifdef M2_HAS_BF16_DOT
inline void put_two(uint16_t* to, F low, F high) { store_bf16(to, low, high); }
#endif

template <class Order, class Value>
void permute_row(const float* x, int64_t columns, int64_t padded, Value* to) {
    constexpr int kParts = Order::kParts, kVectors = Order::kPieces * kParts;
    constexpr int64_t kUnit = kVectors * kLanes;
    for (int64_t k = 0; k < padded; k += kUnit) {
        float unit[kUnit] = {};
        const int64_t left = columns - k < kUnit ? columns - k : kUnit;
        const float* from = x + k;
        if (left < kUnit) {
            if (left > 0) std::memcpy(unit, from, static_cast<size_t>(left) * 4);
            from = unit;
        }
        F ordered[kVectors];
        for (int piece = 0; piece < Order::kPieces; ++piece) {
            F parts[kParts];
            for (int i = 0; i < kParts; ++i) parts[i] = load(from + (piece * kParts + i) * kLanes);
            unzip_all<kParts>(parts);
            for (int i = 0; i < kParts; ++i) ordered[Order::vector(piece, i)] = parts[i];
        }
        for (int v = 0; v < kVectors; v += 2) put_two(to + k + v * kLanes, ordered[v], ordered[v + 1]);
    }
}

template <class Value>
void order_row(const Matrix& w, const Activations& x, const float* from, Value* to) {
    const int64_t columns = x.columns, padded = x.padded;
    switch (w.format) {
        case M2_BF16: return permute_row<Pairs>(from, columns, padded, to);
        case M2_F16:
        case M2_F32: return permute_row<Natural>(from, columns, padded, to);
        case M2_FP8_BLOCK: return permute_row<Bytes>(from, columns, padded, to);
        case M2_INT8: return permute_row<Quads>(from, columns, padded, to);
        default: return permute_row<Nibbles>(from, columns, padded, to);
    }
}

void sum_groups(const Activations& x, const float* from, float* sum) {
    for (int64_t k = 0, g = 0; k < x.padded; k += x.group, ++g) {
        float total = 0;
        const int64_t end = k + x.group < x.columns ? k + x.group : x.columns;
        for (int64_t i = k; i < end; ++i) total += from[i];
        sum[g] = total;
    }
}

// The code of zero of a format in which every group has its own.
constexpr int kNoOffset = -1;

// The code of zero as the products of `w` have it.
inline int int8_zero(const Matrix& w) {
    if (w.format == M2_INT8) return kInt8Zero;
    if (w.format != M2_INT4) return Nvfp4::kInt8Zero;
    return w.zero_point ? kNoOffset : Int4<M2_BF16, false>::kInt8Zero;
}

// One group: value = scale * q with |q| <= 127. A NaN makes the scale NaN.
template <int group>
inline void quantise_group(const float* from, int zero_code, int8_t* to, float* scale,
                           float* sum_of_values) {
    F most = zero();
    for (int i = 0; i < group; i += kLanes) most = max_abs(most, load(from + i));
    const float largest_value = largest(most);
    const float inverse = largest_value > 0 ? 127.0f / largest_value : 0.0f;
    const F factor = splat(std::isfinite(inverse) ? inverse : 0.0f);
    F total = zero();
    for (int i = 0; i < group; i += kLanes) {
        const F q = round_to_even(mul(load(from + i), factor));
        total = add(total, q);
        store_int8(to + i, q);
    }
    const float sum_of_codes = sum(total);
    *scale = largest_value / 127.0f + 0.0f * sum_of_codes;
    if (zero_code == kNoOffset) {
        *sum_of_values = sum_of_codes * *scale;
    } else {
        const float codes = std::isfinite(sum_of_codes) ? sum_of_codes : 0.0f;
        const int32_t offset = -zero_code * static_cast<int32_t>(codes);
        std::memcpy(sum_of_values, &offset, 4);
    }
}

// Of every eight columns the even ones first.
inline void evens_first(int8_t* codes, int64_t size) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    for (int64_t i = 0; i < size; i += 16) {
        auto* at = reinterpret_cast<__m128i*>(codes + i);
        _mm_storeu_si128(at, _mm_shuffle_epi8(_mm_loadu_si128(at), order));
    }
}

template <int group>
void quantise_row(const Activations& x, const float* from, int zero_code, int8_t* to, float* scale,
                  float* sum_of_values) {
    for (int64_t k = 0, g = 0; k < x.padded; k += group, ++g) {
        float padded[group];
        const float* values = from + k;
        if (k + group > x.columns) {
            const int64_t left = x.columns > k ? x.columns - k : 0;
            std::memset(padded, 0, sizeof(padded));
            std::memcpy(padded, values, static_cast<size_t>(left) * 4);
            values = padded;
        }
        quantise_group<group>(values, zero_code, to + k, scale + g, sum_of_values + g);
    }
}

void prepare_row(const Matrix& w, const Activations& x, int64_t row, const float* from) {
    const int64_t groups = x.padded / x.group;
    const int64_t at = row * x.padded;
    if (x.kind == ActivationKind::kInt8) {
        const auto quantise = x.group == 16 ? quantise_row<16> : quantise_row<32>;
        int8_t* codes = static_cast<int8_t*>(x.values) + at;
        quantise(x, from, int8_zero(w), codes, x.scale + row * groups, x.sum + row * groups);
        if (w.format != M2_INT8) evens_first(codes, x.padded);
        return;
    }
    if (x.kind == ActivationKind::kFloat) {
        order_row(w, x, from, static_cast<float*>(x.values) + at);
        if (w.zero_point) sum_groups(x, from, x.sum + row * groups);
        return;
    }
#ifdef M2_HAS_BF16_DOT
    auto* to = static_cast<uint16_t*>(x.values) + at;
    // Weights of the same kind are multiplied as they are stored.
    if (w.format == M2_BF16) return permute_row<Natural>(from, x.columns, x.padded, to);
    order_row(w, x, from, to);
#endif
}

}  // namespace
}  // namespace m2::M2_ISA
