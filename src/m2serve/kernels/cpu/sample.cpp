#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "guarded.h"
#include "pool.h"

namespace m2 {
namespace {

constexpr int64_t kBlock = 64;
constexpr int kLanes = 8;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
    float logit;
    int64_t id;
};

bool before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The largest of up to kBlock logits; NaN if one is. By lanes, because a maximum that minds NaN is
// not vectorised otherwise.
float block_maximum(const float* logits, int64_t size) {
    float best[kLanes];
    int32_t is_nan[kLanes];
    std::fill_n(best, kLanes, -kInfinity);
    std::fill_n(is_nan, kLanes, 0);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float logit = logits[i + lane];
            best[lane] = logit > best[lane] ? logit : best[lane];
            is_nan[lane] |= logit != logit;
        }
    }
    for (; i < size; ++i) {
        best[0] = logits[i] > best[0] ? logits[i] : best[0];
        is_nan[0] |= logits[i] != logits[i];
    }
    if (std::any_of(is_nan, is_nan + kLanes, [](int32_t lane) { return lane != 0; })) {
        return std::numeric_limits<float>::quiet_NaN();
    }
    return *std::max_element(best, best + kLanes);
}

struct Buffers {
    std::vector<float> maxima, ordered;
    std::vector<Candidate> candidates;
    std::vector<double> weights;
};

// The top_k best tokens above -infinity, best first. The top_k-th largest of the blocks' maxima is
// a bound that at least top_k tokens reach; the others are never looked at one by one.
void find_candidates(const float* logits, int64_t vocab, int64_t top_k, Buffers& buffers) {
    const std::vector<float>& maxima = buffers.maxima;
    float bound = -kInfinity;
    if (top_k <= static_cast<int64_t>(maxima.size())) {
        buffers.ordered = maxima;
        const auto at = buffers.ordered.begin() + (top_k - 1);
        std::nth_element(buffers.ordered.begin(), at, buffers.ordered.end(), std::greater<>());
        bound = *at;
    }
    buffers.candidates.clear();
    for (size_t block = 0; block < maxima.size(); ++block) {
        if (maxima[block] < bound) continue;
        const int64_t start = static_cast<int64_t>(block) * kBlock;
        const int64_t end = std::min(start + kBlock, vocab);
        for (int64_t id = start; id < end; ++id) {
            if (logits[id] >= bound && logits[id] > -kInfinity) {
                buffers.candidates.push_back({logits[id], id});
            }
        }
    }
    auto& found = buffers.candidates;
    const auto end = found.begin() + std::min<int64_t>(top_k, static_cast<int64_t>(found.size()));
    std::partial_sort(found.begin(), end, found.end(), before);
    found.erase(end, found.end());
}

// A position in the sorted candidates. The nucleus is every token before which less than top_p of
// the total has been seen.
size_t draw(const m2_choice& choice, Buffers& buffers) {
    const auto& candidates = buffers.candidates;
    auto& weights = buffers.weights;
    weights.clear();
    double total = 0;
    for (const Candidate& one : candidates) {
        const double gap = static_cast<double>(one.logit) - candidates[0].logit;
        const double weight = std::exp(gap / choice.temperature);
        if (weight < choice.min_p) break;
        weights.push_back(weight);
        total += weight;
    }
    size_t kept = 0;
    double mass = 0;
    while (kept < weights.size() && mass < choice.top_p * total) mass += weights[kept++];
    const double target = choice.uniform * mass;
    double seen = 0;
    size_t last = 0;
    for (size_t i = 0; i < kept; ++i) {
        seen += weights[i];
        if (seen > target) return i;
        // Rounding may put the target at the very end: then the last one that adds mass.
        if (weights[i] > 0) last = i;
    }
    return last;
}

}  // namespace

int64_t choose_token(const float* logits, int64_t vocab, const m2_choice& choice) {
    thread_local Buffers buffers;
    buffers.maxima.clear();
    float best = -kInfinity;
    for (int64_t start = 0; start < vocab; start += kBlock) {
        const float maximum = block_maximum(logits + start, std::min(kBlock, vocab - start));
        if (std::isnan(maximum)) return -1;
        best = std::max(best, maximum);
        buffers.maxima.push_back(maximum);
    }
    if (!std::isfinite(best)) return -1;
    find_candidates(logits, vocab, static_cast<int64_t>(choice.top_k), buffers);
    return buffers.candidates[draw(choice, buffers)].id;
}

}  // namespace m2

#pragma GCC visibility push(default)
extern "C" {

// ids [num_rows] of logits [num_rows, stride], of which the first `vocab` columns count. 0, or 1
// when there was no memory.
int m2_choose_tokens(const float* logits, int64_t num_rows, int64_t vocab, int64_t stride,
                     const m2_choice* choices, int64_t* ids) {
    return m2::guarded([&] {
        m2::parallel_for(num_rows, [&](int64_t row, int) {
            ids[row] = m2::choose_token(logits + row * stride, vocab, choices[row]);
        });
    });
}

}  // extern "C"
#pragma GCC visibility pop
