// Numbers that are none, in weights whose codes can hold them.
#pragma once

#include "types.h"

namespace m2 {

// The first row, counted over all matrices, with a NaN among its codes (BF16, F16, F32, FP8), or -1.
int64_t find_nan(const m2_weight& weight);

}  // namespace m2
