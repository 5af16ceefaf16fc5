#include "token_types.h"

namespace m2 {
namespace {

const TokenKernels* choose() {
    const Kernels* kernels = best_kernels();
#ifdef M2_HAS_AMX
    if (kernels == amx_kernels()) return amx_token_kernels();
#endif
    return kernels == avx512_kernels() ? avx512_token_kernels() : avx2_token_kernels();
}

}  // namespace

const TokenKernels* best_token_kernels() {
    static const TokenKernels* const best = choose();
    return best;
}

}  // namespace m2
