// Activations in the order in which the codes of a format unfold.
#pragma once

#include "matmul.h"
#include "quantise.h"
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
