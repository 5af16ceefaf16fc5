// The kernels compiled for AVX-512 F, BW, DQ, VL, VNNI and BF16.
#define M2_ISA avx512
#define M2_HAS_BF16_DOT
#include "simd_avx512.h"
// after simd_*.h
#include "prepare.h"
#include "silu.h"

namespace m2 {
const Kernels* avx512_kernels() {
    using namespace M2_ISA;
    static const Kernels kernels{"avx512", kHasBf16Dot, 0, 0, kLanes, prepare_row, matmul,
                                 kScratchBytes, silu_mul};
    return &kernels;
}
}  // namespace m2
