// exp by lanes.
#pragma once

#include <cstdint>

namespace m2::M2_ISA {
namespace {

// The registers of F and I for the compiler's own arithmetic; a C cast between them keeps the bits.
typedef float Floats __attribute__((vector_size(4 * kLanes), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes), may_alias));

constexpr float kLog2E = 1.44269504088896341f;

// Natural exponential of values up to 88, 0 below -87. Cephes' polynomial, about one ulp.
inline F exponential(F value) {
    Floats x = (Floats)value;
    const Floats low = x < -87.0f ? Floats{} - 87.0f : x;  // NaN stays
    constexpr float kShift = 12582912.0f;                  // 1.5 * 2^23: adding it rounds
    const Floats shifted = low * kLog2E + kShift;
    const Floats n = shifted - kShift;
    const Floats r = (low - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = Floats{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Ints power = ((Ints)shifted << 23) + 0x3F800000;
    const Floats result = p * (Floats)power;
    const Floats cut = x < -87.0f ? Floats{} : result;
    return (F)cut;
}

// 1 + exp(-value), what the sigmoid is one over; below -88 as at -88.
inline F one_and_exponential(F value) {
    Floats negative = -(Floats)value;
    negative = negative > 88.0f ? Floats{} + 88.0f : negative;
    const Floats result = 1.0f + (Floats)exponential((F)negative);
    return (F)result;
}

}  // namespace
}  // namespace m2::M2_ISA
