// Float activations to int8, a vector of groups of columns at a time.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstring>

#include "exponential.h"
#include "task.h"

namespace m2::M2_ISA {
namespace {

// The code of zero of a format in which every group has its own.
constexpr int kNoOffset = -1;

// The code of zero as the products of `w` have it.
inline int int8_zero(const Matrix& w) {
    if (w.format == M2_INT8) return kInt8Zero;
    if (w.format != M2_INT4) return Nvfp4::kInt8Zero;
    return w.zero_point ? kNoOffset : Int4<M2_BF16, false>::kInt8Zero;
}

// Lane i is the largest of vector i.
inline F maxima_of(F (&v)[kLanes]) {
    transpose(v);
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) v[i] = max_abs(v[i], v[i + half]);
    }
    return v[0];
}

// What the values of groups with such maxima are multiplied with; 0 where 127 would overflow.
inline F int8_factors(F maxima) {
    const Floats most = (Floats)maxima, inverse = 127.0f / most;
    const Floats factors = most > 0.0f && inverse <= FLT_MAX ? inverse : Floats{};
    return (F)factors;
}

// kLanes groups at most: value = scale * q with |q| <= 127. A NaN makes a group's scale NaN.
template <int group>
inline void quantise_groups(const float* from, int64_t count, int zero_code, int8_t* to,
                            float* scale, float* sum) {
    F most[kLanes], total[kLanes];
    for (int64_t g = 0; g < kLanes; ++g) {
        most[g] = total[g] = zero();
        if (g >= count) continue;
        each<group / kLanes>([&](auto i) {
            most[g] = max_abs(most[g], load(from + g * group + i * kLanes));
        });
    }
    const F maxima = maxima_of(most);
    alignas(64) float factors[kLanes], scales[kLanes], sums[kLanes];
    store(factors, int8_factors(maxima));
    for (int64_t g = 0; g < count; ++g) {
        const F factor = splat(factors[g]);
        each<group / kLanes>([&](auto i) {
            const int64_t at = g * group + i * kLanes;
            const F q = round_to_even(mul(load(from + at), factor));
            total[g] = add(total[g], q);
            store_int8(to + at, q);
        });
    }
    const Floats codes = (Floats)sums_of(total);
    const Floats scale_of_group = (Floats)maxima / 127.0f + 0.0f * codes;
    store(scales, (F)scale_of_group);
    if (zero_code == kNoOffset) {
        const Floats values = codes * scale_of_group;
        store(sums, (F)values);
    } else {
        const Floats finite = codes == codes ? codes : Floats{};
        const Ints offsets = -zero_code * __builtin_convertvector(finite, Ints);
        store(sums, (F)offsets);
    }
    std::memcpy(scale, scales, static_cast<size_t>(count) * 4);
    std::memcpy(sum, sums, static_cast<size_t>(count) * 4);
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
                  float* sum) {
    constexpr int64_t kAtOnce = kLanes * group;
    for (int64_t k = 0, g = 0; k < x.padded; k += kAtOnce, g += kLanes) {
        alignas(64) float padded[kAtOnce];
        const float* values = from + k;
        if (k + kAtOnce > x.columns) {
            const int64_t left = std::max<int64_t>(0, x.columns - k);
            std::memset(padded, 0, sizeof(padded));
            std::memcpy(padded, values, static_cast<size_t>(left) * 4);
            values = padded;
        }
        const int64_t count = std::min<int64_t>(kLanes, (x.padded - k) / group);
        quantise_groups<group>(values, count, zero_code, to + k, scale + g, sum + g);
    }
}

}  // namespace
}  // namespace m2::M2_ISA
