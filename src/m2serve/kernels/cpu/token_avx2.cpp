// The kernels of a token compiled for AVX2, FMA and F16C.
#define M2_ISA avx2
#include "simd_avx2.h"
// after simd_*.h
#include "rows.h"

namespace m2 {
const TokenKernels* avx2_token_kernels() { return &M2_ISA::kTokenKernels; }
}  // namespace m2
