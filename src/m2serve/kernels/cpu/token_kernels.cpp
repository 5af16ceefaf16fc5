#include "token_types.h"

namespace m2 {

const TokenKernels* best_token_kernels() {
    static const TokenKernels* const best =
        best_kernels() == avx2_kernels() ? avx2_token_kernels() : avx512_token_kernels();
    return best;
}

}  // namespace m2
