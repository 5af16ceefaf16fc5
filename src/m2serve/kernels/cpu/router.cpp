#include "router.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "linear.h"
#include "pool.h"
#include "token_types.h"

namespace m2 {
namespace {

using Candidate = std::pair<float, int64_t>;

// NaN is the largest of all.
bool before(const Candidate& a, const Candidate& b) {
    return (std::isnan(a.first) && !std::isnan(b.first)) || a.first > b.first;
}

// Of equal candidates these algorithms take the same ones as torch.topk, which uses them too.
void best_first(std::vector<Candidate>& all, int64_t top_k) {
    const auto end = all.begin() + top_k;
    if (top_k * 64 <= static_cast<int64_t>(all.size())) {
        std::partial_sort(all.begin(), end, all.end(), before);
        return;
    }
    std::nth_element(all.begin(), end - 1, all.end(), before);
    std::sort(all.begin(), end - 1, before);
}

void choose(float* scores, const float* bias, int64_t num_experts, int64_t top_k, float* weights,
            int64_t* ids, std::vector<Candidate>& all) {
    all.resize(static_cast<size_t>(num_experts));
    best_token_kernels()->sigmoid(scores, num_experts);
    for (int64_t e = 0; e < num_experts; ++e) {
        all[static_cast<size_t>(e)] = {scores[e] + bias[e], e};
    }
    best_first(all, top_k);
    float total = 0;
    for (int64_t j = 0; j < top_k; ++j) {
        ids[j] = all[static_cast<size_t>(j)].second;
        weights[j] = scores[ids[j]];
        total += weights[j];
    }
    for (int64_t j = 0; j < top_k; ++j) weights[j] /= total;
}

constexpr int64_t kTokensAtOnce = 4;

}  // namespace

void route(const m2_weight& gate, const float* bias, const float* x, int64_t num_tokens,
           int64_t top_k, float* logits, float* weights, int64_t* ids) {
    linear(gate, x, num_tokens, logits, M2_ACTIVATION_FLOAT);
    const int64_t chunks = (num_tokens + kTokensAtOnce - 1) / kTokensAtOnce;
    parallel_for(chunks, [&](int64_t chunk, int) {
        std::vector<Candidate> all;
        const int64_t end = std::min(num_tokens, (chunk + 1) * kTokensAtOnce);
        for (int64_t t = chunk * kTokensAtOnce; t < end; ++t) {
            choose(logits + t * gate.rows, bias, gate.rows, top_k, weights + t * top_k,
                   ids + t * top_k, all);
        }
    });
}

}  // namespace m2
