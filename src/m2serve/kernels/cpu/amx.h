// What AMX does in other ways than AVX-512: data alone. A file compiled for an instruction set has
// nothing that runs outside its kernels, for the compiler may use that set anywhere in it, and a
// processor without it has to choose its kernels, too.
#pragma once

#include "token_types.h"

namespace m2 {

// Fields as in Kernels.
struct AmxKernels {
    int64_t tiles_from, turned_from;
    decltype(Kernels::prepare_row) prepare_row;
    decltype(Kernels::matmul) matmul;
    int64_t scratch_bytes;
    decltype(Kernels::add_matmul) add_matmul;
    decltype(Kernels::gate_up) gate_up;
    decltype(Kernels::gate_up_scratch_bytes) gate_up_scratch_bytes;
    decltype(Kernels::prepare_slab) prepare_slab;
};
extern const AmxKernels kAmxKernels;

// Fields as in TokenKernels.
struct AmxTokenKernels {
    int64_t prompt_rows;
    decltype(TokenKernels::attend_scratch_bytes) attend_scratch_bytes;
    decltype(TokenKernels::attend_prompt) attend_prompt;
    decltype(TokenKernels::attend_token_rounded) attend_token_rounded;
};
extern const AmxTokenKernels kAmxTokenKernels;

}  // namespace m2
