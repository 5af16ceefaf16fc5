// One vector of bytes.
#pragma once

#include <cstdint>
#include <cstring>

namespace m2::M2_ISA {
namespace {

// A vector of which only `bytes` may be there; what is behind them is 0.
inline I load_unit(const uint8_t* codes, int64_t bytes) {
    if (bytes >= kBytes) return load_bytes(codes);
    alignas(64) uint8_t buffer[kBytes] = {};
    std::memcpy(buffer, codes, static_cast<size_t>(bytes));
    return load_bytes(buffer);
}

}  // namespace
}  // namespace m2::M2_ISA
