// The kernels compiled for AVX2, FMA and F16C.
#define M2_ISA avx2
#include "simd_avx2.h"
// after simd_*.h
#include "prepare.h"
#include "silu.h"

namespace m2 {
const Kernels* avx2_kernels() {
    using namespace M2_ISA;
    static const Kernels kernels{"avx2", kHasBf16Dot, 0, 0, kLanes, prepare_row, matmul,
                                 kScratchBytes, silu_mul};
    return &kernels;
}
}  // namespace m2
