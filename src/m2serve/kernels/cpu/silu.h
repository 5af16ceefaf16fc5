// What lies between an expert's two products.
#pragma once

#include <cstring>

#include "exponential.h"

namespace m2::M2_ISA {
namespace {

inline F silu_times(F gate, F up) {
    const Floats silu = (Floats)gate / (Floats)one_and_exponential(gate);
    return mul((F)silu, up);
}

inline void silu_mul(float* gate, const float* up, int64_t size) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        store(gate + i, silu_times(load(gate + i), load(up + i)));
    }
    if (i == size) return;
    float rest[2][kLanes] = {};
    const auto bytes = static_cast<size_t>(size - i) * 4;
    std::memcpy(rest[0], gate + i, bytes);
    std::memcpy(rest[1], up + i, bytes);
    store(rest[0], silu_times(load(rest[0]), load(rest[1])));
    std::memcpy(gate + i, rest[0], bytes);
}

}  // namespace
}  // namespace m2::M2_ISA
