// Rounding to bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

namespace m2::M2_ISA {
namespace {

// To nearest, ties to even; any NaN is the quiet one.
inline uint16_t bf16_code(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace m2::M2_ISA
