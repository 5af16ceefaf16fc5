// The kernels of a token compiled for AVX-512 F, BW, DQ, VL, VNNI and BF16.
#define M2_ISA avx512
#include "simd_avx512.h"
// after simd_*.h
#include "rows.h"

namespace m2 {
const TokenKernels* avx512_token_kernels() { return &M2_ISA::kTokenKernels; }
}  // namespace m2
