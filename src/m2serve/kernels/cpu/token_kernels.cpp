#include "token_types.h"

#ifdef M2_HAS_AMX
#include "amx.h"
#endif

namespace m2 {
namespace {

#ifdef M2_HAS_AMX
const TokenKernels* made_for_amx() {
    static const TokenKernels kernels = [] {
        TokenKernels all = *avx512_token_kernels();
        all.prompt_rows = kAmxTokenKernels.prompt_rows;
        all.attend_scratch_bytes = kAmxTokenKernels.attend_scratch_bytes;
        all.attend_prompt = kAmxTokenKernels.attend_prompt;
        all.attend_token_rounded = kAmxTokenKernels.attend_token_rounded;
        return all;
    }();
    return &kernels;
}
#endif

const TokenKernels* choose() {
    const Kernels* kernels = best_kernels();
#ifdef M2_HAS_AMX
    if (kernels == amx_kernels()) return made_for_amx();
#endif
    return kernels == avx512_kernels() ? avx512_token_kernels() : avx2_token_kernels();
}

}  // namespace

const TokenKernels* best_token_kernels() {
    static const TokenKernels* const best = choose();
    return best;
}

}  // namespace m2
