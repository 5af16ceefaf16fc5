// BF16 weights against bfloat16 activations, both in the order of the columns. Nothing is expanded:
// a row of weights is read once from where it is stored and meets all rows of activations.
#pragma once

#include <algorithm>

#include "task.h"

namespace m2::M2_ISA {
namespace {

#ifdef M2_HAS_BF16_DOT
constexpr int64_t kDotColumns = 2 * kLanes;  // of a vector
constexpr int kDotTokens = 8;                // sums in registers
constexpr int64_t kMostDotTokens = 16;       // more are faster tile by tile
// Activations that fit the first cache beside the weights.
constexpr int64_t kDotValues = 12288;

// The sums of M rows of activations over columns k0..k1, several to a row where few rows would
// leave the multipliers waiting for one another.
template <int M>
inline void dot_span(const uint8_t* codes, int64_t k0, int64_t k1, const uint16_t* const* x,
                     F* total) {
    constexpr int kSums = M == 1 ? 8 : M == 2 ? 4 : M <= 4 ? 2 : 1;
    F sums[M * kSums];
    each<M * kSums>([&](auto i) { sums[i] = zero(); });
    const auto vector = [&](I w, int64_t k, auto s) {
        each<M>([&](auto m) {
            F& one = sums[m * kSums + s];
            one = dot_bf16(one, w, load_bytes(x[m] + k));
        });
    };
    int64_t k = k0;
    for (; k + kSums * kDotColumns <= k1; k += kSums * kDotColumns) {
        each<kSums>([&](auto s) {
            const int64_t at = k + s * kDotColumns;
            __builtin_prefetch(codes + at * 2 + 2048);
            vector(load_bytes(codes + at * 2), at, s);
        });
    }
    for (; k < k1; k += kDotColumns) {
        const I w = load_unit(codes + k * 2, (k1 - k) * 2);
        vector(w, k, std::integral_constant<int, 0>{});
    }
    each<M>([&](auto m) {
        total[m] = sums[m * kSums];
        each<kSums - 1>([&](auto s) { total[m] = add(total[m], sums[m * kSums + s + 1]); });
    });
}

template <int M>
inline void dot_row(const Task& task, int64_t n, int64_t m0, int64_t k0, int64_t k1,
                    const uint16_t* const* x) {
    F acc[M];
    dot_span<M>(task.w.row(n), k0, k1, x + m0, acc);
    each<M>([&](auto m) {
        float* out = task.out(m0 + m, n);
        *out = (k0 > 0 ? *out : 0.0f) + sum(acc[m]);
    });
}

// At most kMostDotTokens rows of activations.
inline void dot_rows(const Task& task) {
    const uint16_t* x[kMostDotTokens];
    for (int64_t m = 0; m < task.num_tokens; ++m) {
        x[m] = static_cast<const uint16_t*>(task.x.values) + task.token(m) * task.x.padded;
    }
    const int64_t columns_at_once = kDotValues / task.num_tokens / kPad * kPad;
    int64_t k0 = 0;
    do {  // once also for no columns at all: the sums are 0 then
        const int64_t k1 = std::min(task.w.columns, k0 + columns_at_once);
        for (int64_t n = task.n0; n < task.n1; ++n) {
            int64_t m = 0;
            for (; m + kDotTokens <= task.num_tokens; m += kDotTokens) {
                dot_row<kDotTokens>(task, n, m, k0, k1, x);
            }
            each<kDotTokens - 1>([&](auto left) {
                if (task.num_tokens - m == left + 1) dot_row<left + 1>(task, n, m, k0, k1, x);
            });
        }
        k0 += columns_at_once;
    } while (k0 < task.w.columns);
}

struct StoredRows {
    const Matrix& w;
    // Columns k0..k1 of row n, with zeros up to a whole vector; returns how many.
    int64_t copy(int64_t n, int64_t k0, int64_t k1, uint16_t* to) const {
        const uint8_t* codes = w.row(n);
        for (int64_t k = k0; k < k1; k += kDotColumns) {
            store_bytes(to + k - k0, load_unit(codes + k * 2, (k1 - k) * 2));
        }
        return (k1 - k0 + kDotColumns - 1) / kDotColumns * kDotColumns;
    }
};
#endif

}  // namespace
}  // namespace m2::M2_ISA
