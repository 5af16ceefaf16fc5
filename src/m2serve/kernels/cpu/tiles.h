// The tile registers of AMX: all eight are 16 rows of 64 bytes.
#pragma once

#include <cstdint>

namespace m2::M2_ISA {
namespace {

constexpr int64_t kRegisterColumns = 32;  // numbers in bfloat16 of a row
constexpr int kRegisterPairs = kRegisterColumns / 2;
constexpr int64_t kRegisterRows = 16;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr TileConfig() {
        for (int i = 0; i < 8; ++i) {
            row_bytes[i] = kBytes;
            rows[i] = kRegisterRows;
        }
    }
};

// The registers are in use while this lives.
class TileRegisters {
  public:
    TileRegisters() {
        static constexpr TileConfig config;
        _tile_loadconfig(&config);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// What was written before is in memory for the loads of tiles that follow: GCC's do not say that they
// read any.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// Lane i: even[i] and odd[i] rounded to nearest even, the even one lower.
inline I pairs_of(F even, F odd) {
    alignas(64) static constexpr int16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const I both = (I)_mm512_cvtne2ps_pbh(odd, even);
    return _mm512_permutexvar_epi16(load_bytes(kOrder), both);
}
// The same of values that bfloat16 has: nothing is rounded.
inline I exact_pairs_of(F even, F odd) {
    return _mm512_or_si512(_mm512_srli_epi32(as_bits(even), 16), as_bits(odd));
}
// 32 values in their order.
inline I row_of_floats(F first, F second) { return (I)_mm512_cvtne2ps_pbh(second, first); }

}  // namespace
}  // namespace m2::M2_ISA
