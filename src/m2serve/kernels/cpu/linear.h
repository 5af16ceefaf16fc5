// The matrix products, for the C interface and for the fused decode step. All rows are float32 and
// contiguous; the products run on the pool, so call these outside of parallel_for.
#pragma once

#include "types.h"

namespace m2 {

// y[t, n] = sum over k of x[t, k] * W[n, k]; several matrices of a weight are rows one after the
// other.
void linear(const m2_weight& weight, const float* x, int64_t num_rows, float* y,
            m2_activation activation);

// The same x through several weights with equal columns in one pass (q, k, v): y[i] is
// [num_rows, rows of weight i].
void linears(const m2_weight* const* weights, int num_weights, const float* x, int64_t num_rows,
             float* const* y, m2_activation activation);

// y[t] = sum over j of weights[t, j] * W2[e] (silu(W1[e] x[t]) * W3[e] x[t]), e = ids[t, j]. w13
// has the matrices W1[0], W3[0], W1[1], ...; the sum is in the order of the experts. ids must be
// below w2.matrices.
void experts(const m2_weight& w13, const m2_weight& w2, const float* x, const float* weights,
             const int64_t* ids, int64_t num_tokens, int64_t top_k, float* y,
             m2_activation activation);

}  // namespace m2
