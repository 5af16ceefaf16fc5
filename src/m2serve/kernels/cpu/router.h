// The choice of experts.
#pragma once

#include <cstdint>

#include "types.h"

namespace m2 {

// weights and ids [num_tokens, top_k] from x [num_tokens, H] and gate [E, H]: the top_k of
// sigmoid(gate x) + bias, the best first, weighted with their sigmoids divided by the sum of those.
// Equal values are chosen in the order of torch.topk. `logits` is scratch, [num_tokens, E].
void route(const m2_weight& gate, const float* bias, const float* x, int64_t num_tokens,
           int64_t top_k, float* logits, float* weights, int64_t* ids);

}  // namespace m2
