// Formats of one to four bytes a column. A unit is one vector of codes; it unfolds into 4 / size
// float vectors, whose order the activations share. FP8 has a scale for every span of columns.
// kUnfoldsInLanes: what unfolds from 32 bits is in the same 32 bits of those vectors.
// kUnfoldsTogether: so simply that several rows of codes can at once, in registers, and share what
// they load of the activations.
#pragma once

#include "grouped.h"

namespace m2::M2_ISA {
namespace {

struct Bf16 {
    static constexpr int kVectors = 2;
    static constexpr bool kScaled = false;
    static constexpr bool kUnfoldsTogether = true;
    static constexpr bool kUnfoldsInLanes = true;
    template <int v>
    static F vector(I raw) {
        return v == 0 ? bf16_even(raw) : bf16_odd(raw);
    }
};
struct F16 {
    static constexpr int kVectors = 2;
    static constexpr bool kScaled = false;
    static constexpr bool kUnfoldsTogether = true;
    static constexpr bool kUnfoldsInLanes = false;
    template <int v>
    static F vector(I raw) {
        return f16_half<v>(raw);
    }
};
struct F32 {
    static constexpr int kVectors = 1;
    static constexpr bool kScaled = false;
    static constexpr bool kUnfoldsTogether = true;
    static constexpr bool kUnfoldsInLanes = true;
    template <int v>
    static F vector(I raw) {
        return as_float(raw);
    }
};
struct Int8 {  // times 2^24
    static constexpr int kVectors = 4;
    static constexpr bool kScaled = false;
    static constexpr bool kUnfoldsTogether = true;
    static constexpr bool kUnfoldsInLanes = true;
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
    static constexpr bool kUnfoldsTogether = false;
    static constexpr bool kUnfoldsInLanes = false;
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

// Sums of a row of codes and one of activations: several where few rows would leave the multipliers
// waiting for one another.
template <class Format, int M>
constexpr int kSpanSums =
    M == 1 ? 4 : M == 2 || (M <= 4 && !Format::kUnfoldsTogether) ? 2 : 1;

// The sums of M rows of activations with each of R rows of codes over columns k0..k1: total[r * M + m],
// which does not depend on R.
template <class Format, int M, int R>
inline void span(const uint8_t* const* codes, int64_t k0, int64_t k1, const float* const* x,
                 F* total) {
    constexpr int kSums = kSpanSums<Format, M>;
    constexpr int kUnit = Format::kVectors * kLanes, kSize = kBytesPerColumn<Format>;
    constexpr int kLine = 64, kTogether = Format::kUnfoldsTogether && M > 1 ? R : 1;
    constexpr int kUnits = std::max(kTogether > 1 ? kLine / kBytes : 1, kSums / Format::kVectors);
    constexpr int kLines = (kBytes + kLine - 1) / kLine;
    F sums[R * M * kSums];
    each<R * M * kSums>([&](auto i) { sums[i] = zero(); });
    // Rows r.. of codes, one unit of each, against the activations of columns `at`..
    const auto unit = [&](const I* raw, int64_t at, auto r, auto index)
                          __attribute__((always_inline)) {
        each<Format::kVectors>([&](auto v) {
            constexpr int s = (index * Format::kVectors + v) % kSums;
            F w[kTogether];
            each<kTogether>([&](auto i) { w[i] = Format::template vector<v>(raw[i]); });
            each<M>([&](auto m) {
                F value = load(x[m] + at + v * kLanes);
                if constexpr (kTogether > 1) stay_in_register(value);
                each<kTogether>([&](auto i) {
                    F& one = sums[((r + i) * M + m) * kSums + s];
                    one = fma(w[i], value, one);
                });
            });
        });
    };
    int64_t k = k0;
    for (; k + kUnits * kUnit <= k1; k += kUnits * kUnit) {
        each<kUnits>([&](auto u) {
            const int64_t at = k + u * kUnit;
            each<R / kTogether>([&](auto turn) {
                constexpr int r = turn * kTogether;
                I raw[kTogether];
                each<kTogether>([&](auto i) {
                    const uint8_t* from = codes[r + i] + at * kSize;
                    each<kLines>([&](auto l) { __builtin_prefetch(from + 2048 + l * kLine); });
                    raw[i] = load_bytes(from);
                });
                unit(raw, at, std::integral_constant<int, r>{}, u);
            });
        });
    }
    for (; k < k1; k += kUnit) {
        each<R / kTogether>([&](auto turn) {
            constexpr int r = turn * kTogether;
            I raw[kTogether];
            each<kTogether>([&](auto i) {
                raw[i] = load_unit(codes[r + i] + k * kSize, (k1 - k) * kSize);
            });
            unit(raw, k, std::integral_constant<int, r>{}, std::integral_constant<int, 0>{});
        });
    }
    each<R * M>([&](auto i) {
        total[i] = sums[i * kSums];
        each<kSums - 1>([&](auto s) { total[i] = add(total[i], sums[i * kSums + s + 1]); });
    });
}

template <class Format, int M, int R>
inline void span_rows(const uint8_t* const* codes, const float* const* scale, int block, int64_t k0,
                      int64_t k1, const float* const* x, F* acc) {
    F total[R * M];
    if constexpr (!Format::kScaled) {
        span<Format, M, R>(codes, k0, k1, x, total);
        each<R * M>([&](auto i) { acc[i] = add(acc[i], total[i]); });
    } else {
        for (int64_t k = k0; k < k1;) {
            const int64_t end = (k / block + 1) * block < k1 ? (k / block + 1) * block : k1;
            span<Format, M, R>(codes, k, end, x, total);
            each<R>([&](auto r) {
                const F factor = splat(scale[r][k / block] * kFp8Factor);
                each<M>([&](auto m) {
                    acc[r * M + m] = fma(total[r * M + m], factor, acc[r * M + m]);
                });
            });
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
