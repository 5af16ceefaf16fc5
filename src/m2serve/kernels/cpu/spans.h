// Formats of one to four bytes a column. A unit is one vector of codes; it unfolds into 4 / size
// float vectors, whose order the activations share. FP8 has a scale for every span of columns.
#pragma once

#include "grouped.h"

namespace m2::M2_ISA {
namespace {

struct Bf16 {
    static constexpr int kVectors = 2;
    static constexpr bool kScaled = false;
    template <int v>
    static F vector(I raw) {
        return v == 0 ? bf16_even(raw) : bf16_odd(raw);
    }
};
struct F16 {
    static constexpr int kVectors = 2;
    static constexpr bool kScaled = false;
    template <int v>
    static F vector(I raw) {
        return f16_half<v>(raw);
    }
};
struct F32 {
    static constexpr int kVectors = 1;
    static constexpr bool kScaled = false;
    template <int v>
    static F vector(I raw) {
        return as_float(raw);
    }
};
struct Int8 {  // times 2^24
    static constexpr int kVectors = 4;
    static constexpr bool kScaled = false;
    template <int v>
    static F vector(I raw) {
        return byte_to_float<v>(raw);
    }
};
// Times 2^-8, by way of float16, which has E4M3's subnormals as subnormals of its own: as float32's
// every product with one would trap into microcode on some processors.
struct Fp8 {
    static constexpr int kVectors = 4;
    static constexpr bool kScaled = true;
    template <int v>
    static F vector(I raw) {
        return e4m3_to_float<v>(raw);
    }
};
constexpr float kFp8Factor = 0x1p8f;

template <class Format>
constexpr int kBytesPerColumn = 4 / Format::kVectors;

template <class Format, class Put>
__attribute__((always_inline)) inline void unfold(I raw, const Put& put) {
    each<Format::kVectors>([&](auto v) { put(Format::template vector<v>(raw), v); });
}

// The sums of M rows of activations over columns k0..k1, several to a row where few rows would
// leave the multipliers waiting for one another.
template <class Format, int M>
inline void span(const uint8_t* codes, int64_t k0, int64_t k1, const float* const* x, F* total) {
    constexpr int kSums = M == 1 ? 4 : M <= 4 ? 2 : 1;
    constexpr int kUnits = kSums <= Format::kVectors ? 1 : kSums / Format::kVectors;
    constexpr int kUnit = Format::kVectors * kLanes;  // columns
    F sums[M * kSums];
    each<M * kSums>([&](auto i) { sums[i] = zero(); });
    const auto unit = [&](I raw, int64_t at, auto index) {
        unfold<Format>(raw, [&](F w, auto v) {
            constexpr int s = (index * Format::kVectors + v) % kSums;
            each<M>([&](auto m) {
                F& one = sums[m * kSums + s];
                one = fma(w, load(x[m] + at + v * kLanes), one);
            });
        });
    };
    constexpr int kSize = kBytesPerColumn<Format>;
    constexpr int kLine = 64, kLines = (kUnits * kUnit * kSize + kLine - 1) / kLine;
    int64_t k = k0;
    for (; k + kUnits * kUnit <= k1; k += kUnits * kUnit) {
        each<kLines>([&](auto i) { __builtin_prefetch(codes + k * kSize + 2048 + i * kLine); });
        each<kUnits>([&](auto u) {
            unit(load_bytes(codes + (k + u * kUnit) * kSize), k + u * kUnit, u);
        });
    }
    for (; k < k1; k += kUnit) {
        unit(load_unit(codes + k * kSize, (k1 - k) * kSize), k, std::integral_constant<int, 0>{});
    }
    each<M>([&](auto m) {
        total[m] = sums[m * kSums];
        each<kSums - 1>([&](auto s) { total[m] = add(total[m], sums[m * kSums + s + 1]); });
    });
}

template <class Format, int M>
inline void span_row(const uint8_t* codes, const float* scale, int block, int64_t k0, int64_t k1,
                     const float* const* x, F* acc) {
    F total[M];
    if constexpr (!Format::kScaled) {
        span<Format, M>(codes, k0, k1, x, total);
        each<M>([&](auto m) { acc[m] = add(acc[m], total[m]); });
    } else {
        for (int64_t k = k0; k < k1;) {
            const int64_t end = (k / block + 1) * block < k1 ? (k / block + 1) * block : k1;
            span<Format, M>(codes, k, end, x, total);
            const F factor = splat(scale[k / block] * kFp8Factor);
            each<M>([&](auto m) { acc[m] = fma(total[m], factor, acc[m]); });
            k = end;
        }
    }
}

// As expand_row of grouped.h. INT8 stays times 2^24.
template <class Format>
inline int64_t expand_span_row(const uint8_t* codes, const float* scale, int block, int64_t k0,
                               int64_t k1, float* to) {
    constexpr int kUnit = Format::kVectors * kLanes;
    constexpr int kSize = kBytesPerColumn<Format>;
    for (int64_t k = k0; k < k1;) {
        int64_t end = k1;
        F factor = zero();
        if constexpr (Format::kScaled) {
            end = (k / block + 1) * block < k1 ? (k / block + 1) * block : k1;
            factor = splat(scale[k / block] * kFp8Factor);
        }
        for (; k < end; k += kUnit) {
            const I raw = k + kUnit <= k1 ? load_bytes(codes + k * kSize)
                                          : load_unit(codes + k * kSize, (k1 - k) * kSize);
            unfold<Format>(raw, [&](F w, auto v) {
                store(to + k - k0 + v * kLanes, Format::kScaled ? mul(w, factor) : w);
            });
        }
    }
    return (k1 - k0 + kUnit - 1) / kUnit * kUnit;
}

}  // namespace
}  // namespace m2::M2_ISA
