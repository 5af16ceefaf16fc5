// Weights in the order in which interleaved.h reads them.
#pragma once

#include "types.h"

namespace m2 {

// Whether there is an integer product for the weight and its sizes fit.
bool can_interleave(const m2_weight& weight);

// Where it can be, and has not been done: turns every slab of Kernels::lanes rows about, in place, so
// that the four bytes in which the rows have the same columns lie side by side, and so do their
// scales and zero points of the same group (not INT8's scale, of which a row has one). Sets
// weight.interleaved. Nothing else may use the weight meanwhile. Throws std::bad_alloc, and may then
// have turned a part: the weight is lost.
void interleave(m2_weight& weight);

}  // namespace m2
