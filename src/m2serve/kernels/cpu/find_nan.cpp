#include "find_nan.h"

#include <atomic>
#include <cstring>

#include "pool.h"
#include "prepared.h"

namespace m2 {
namespace {

// Whether a value without its sign is above `infinity`.
template <class Bits>
bool holds_more(const uint8_t* from, int64_t bytes, Bits infinity) {
    constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
    bool found = false;
    for (int64_t i = 0; i < bytes; i += sizeof(Bits)) {
        Bits value;
        std::memcpy(&value, from + i, sizeof(Bits));
        found |= static_cast<Bits>(value & ~kSign) > infinity;
    }
    return found;
}

bool holds_nan(int32_t format, const uint8_t* from, int64_t bytes) {
    switch (format) {
        case M2_BF16: return holds_more<uint16_t>(from, bytes, 0x7F80);
        case M2_F16: return holds_more<uint16_t>(from, bytes, 0x7C00);
        case M2_F32: return holds_more<uint32_t>(from, bytes, 0x7F800000);
        case M2_FP8_BLOCK: return holds_more<uint8_t>(from, bytes, 0x7E);  // E4M3 has no infinity
        default: return false;
    }
}

}  // namespace

int64_t find_nan(const m2_weight& weight) {
    const int64_t rows = weight.matrices * weight.rows, stride = row_bytes(weight).codes;
    const auto* codes = static_cast<const uint8_t*>(weight.codes);
    std::atomic<int64_t> first{rows};
    parallel_for((rows + kMostRows - 1) / kMostRows, [&](int64_t chunk, int) {
        const int64_t end = std::min(rows, (chunk + 1) * kMostRows);
        for (int64_t row = chunk * kMostRows; row < end && row < first.load(); ++row) {
            if (!holds_nan(weight.format, codes + row * stride, stride)) continue;
            int64_t before = first.load();
            while (row < before && !first.compare_exchange_weak(before, row)) {
            }
        }
    });
    return first.load() < rows ? first.load() : -1;
}

}  // namespace m2
