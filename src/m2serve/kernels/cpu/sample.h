// From logits and one random number a row to a token: temperature, min_p, top_k, top_p.
#pragma once

#include <cstdint>

extern "C" {

// top_k is 1 (greedy) to the vocabulary; uniform lies in [0, 1). temperature is above 0.
struct m2_choice {
    double temperature, min_p, top_k, top_p, uniform;
};

}  // extern "C"

namespace m2 {

// The token of one row. Tokens stand in one order: higher logit first, lower id first among equals.
// -1 when the largest logit is no finite number: a NaN or an infinity somewhere, or nothing above
// -infinity.
int64_t choose_token(const float* logits, int64_t vocab, const m2_choice& choice);

}  // namespace m2
