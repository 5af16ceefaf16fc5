// From a format to its loops: the direct product for few rows of activations, the tiled for many.
// Interleaved weights meet int8 activations, others float ones.
#pragma once

#include <algorithm>
#include <type_traits>

#include "dot_rows.h"
#include "int8_tile.h"
#include "panel.h"
#include "tile.h"

namespace m2::M2_ISA {
namespace {

// With more rows, expanding a tile costs less than expanding codes again and again; where a code is
// one number that is later: it expands in registers.
constexpr int64_t kMostGroupedRows = 4, kMostSpanRows = 10;
constexpr int64_t kInt8TileFrom = 12;
// Rows of activations whose sums with rows of weights stay in registers.
constexpr int kRowsAtOnce = 5;
// Columns of few rows of activations that fit the first cache beside the weights.
constexpr int64_t kFloatColumns = 6144;

constexpr int64_t kScratchBytes = std::max({int64_t{sizeof(Panel)}, int64_t{sizeof(Int8Tile)},
                                            kTileBytes});

template <class Format>
struct GroupedFloat {
    using X = FloatActivations;
    static X activations(const Task& task, int64_t m) {
        return float_activations(task.x, task.token(m));
    }
    template <int M>
    static constexpr int kPlaces = 1;
    static constexpr int64_t kMostRows = kMostGroupedRows, kColumns = kPad;
    template <int M, int R>
    static void rows(const Task& task, const int64_t* n, int64_t k0, int64_t k1, const X* x,
                     F* acc) {
        float_row<Format, M>(row_of(task.w, n[0], Format::kGroup), k0, k1, x, acc);
    }
};
template <class Format>
struct Spans {
    using X = const float*;
    static X activations(const Task& task, int64_t m) {
        return float_activations(task.x, task.token(m)).values;
    }
    template <int M>
    static constexpr int kPlaces =
        Format::kUnfoldsTogether ? kSumsAtOnce / 4
                                 : std::clamp(kSumsAtOnce / (M * kSpanSums<Format, M>), 1, 4);
    static constexpr int64_t kMostRows = kMostSpanRows, kColumns = 256;
    template <int M, int R>
    static void rows(const Task& task, const int64_t* n, int64_t k0, int64_t k1, const X* x,
                     F* acc) {
        const uint8_t* codes[R];
        const float* scale[R];
        each<R>([&](auto r) {
            codes[r] = task.w.codes + n[r] * task.w.code_stride;
            scale[r] = block_scale(task.w, n[r]);
        });
        span_rows<Format, M, R>(codes, scale, task.w.group, k0, k1, x, acc);
    }
};

// M rows of activations against R rows of weights by turns.
template <class Product, int M, int R>
inline void direct_block(const Task& task, int64_t m0, const int64_t* n, int64_t k0, int64_t k1,
                         const typename Product::X* x) {
    F acc[R * M];
    each<R * M>([&](auto i) { acc[i] = zero(); });
    Product::template rows<M, R>(task, n, k0, k1, x, acc);
    each<R>([&](auto r) {
        const float factor = factor_of_row(task, n[r]);
        each<M>([&](auto m) {
            float* out = task.out(m0 + m, n[r]);
            *out = (k0 > 0 ? *out : 0.0f) + factor * sum(acc[r * M + m]);
        });
    });
}

using DirectPasses = Passes<kRowsAtOnce, kMostSpanRows>;

// All rows of activations, of which there are M if that is not 0, against R rows of weights.
template <class Product, int M, int R>
inline void direct_rows(const Task& task, const DirectPasses& passes, const int64_t* n, int64_t k0,
                        int64_t k1, const typename Product::X* x) {
    if constexpr (M > 0) {
        direct_block<Product, M, R>(task, 0, n, k0, k1, x);
    } else {
        passes.each_pass([&](int64_t, int64_t m, auto rows) {
            direct_block<Product, rows, R>(task, m, n, k0, k1, x + m);
        });
    }
}

// The same against every row of weights, in several places by turns: the processor's own prefetching
// brings more from a few places at once than from one.
template <class Product, int M>
void direct_of(const Task& task) {
    constexpr int R = Product::template kPlaces<M == 0 ? kRowsAtOnce : M>;
    const DirectPasses passes(0, task.num_tokens);
    typename Product::X x[Product::kMostRows];
    for (int64_t m = 0; m < task.num_tokens; ++m) x[m] = Product::activations(task, m);
    static_assert(kFloatColumns / Product::kMostRows >= Product::kColumns);  // 0 would never end
    const int64_t columns_at_once =
        kFloatColumns / task.num_tokens / Product::kColumns * Product::kColumns;
    const int64_t apart = (task.n1 - task.n0) / R;
    for (int64_t k0 = 0; k0 < task.w.columns; k0 += columns_at_once) {
        const int64_t k1 = std::min(task.w.columns, k0 + columns_at_once);
        for (int64_t i = 0; i < apart; ++i) {
            int64_t n[R];
            each<R>([&](auto r) { n[r] = task.n0 + r * apart + i; });
            direct_rows<Product, M, R>(task, passes, n, k0, k1, x);
        }
        for (int64_t n = task.n0 + R * apart; n < task.n1; ++n) {
            direct_rows<Product, M, 1>(task, passes, &n, k0, k1, x);
        }
    }
}

// At most kMostRows rows of activations.
template <class Product>
void direct(const Task& task) {
    constexpr int64_t kMost = Product::kMostRows;
    if constexpr (kMost > kRowsAtOnce) {
        if (task.num_tokens > kRowsAtOnce) return direct_of<Product, 0>(task);
    }
    each<std::min<int64_t>(kMost, kRowsAtOnce)>([&](auto less) {
        constexpr int M = less + 1;
        if (task.num_tokens == M) direct_of<Product, M>(task);
    });
}

// By tiles or panels that `expand` makes, row by row.
template <class Expand>
void expanded(const Task& task, const Expand& expand) {
#ifdef M2_HAS_BF16_DOT
    if (task.x.kind == ActivationKind::kBf16) return tiled(task, expand);
#endif
    panels(task, [&](int64_t n, int64_t rows, int64_t k0, int64_t k1, int64_t first, Panel& panel) {
        return turn_rows(expand, n, rows, k0, k1, first, panel);
    });
}

#ifdef M2_HAS_BF16_DOT
// BF16 weights and activations.
inline void bf16_rows(const Task& task) {
    task.num_tokens <= kMostDotTokens ? dot_rows(task) : tiled(task, StoredRows{task.w});
}
#endif

template <class Format>
void spans(const Task& task) {
#ifdef M2_HAS_BF16_DOT
    if constexpr (std::is_same_v<Format, Bf16>) {
        if (task.x.kind == ActivationKind::kBf16) return bf16_rows(task);
    }
#endif
    if (task.num_tokens <= kMostSpanRows && task.x.kind == ActivationKind::kFloat) {
        return direct<Spans<Format>>(task);
    }
    if constexpr (Format::kUnfoldsInLanes) {
        if (task.x.kind == ActivationKind::kFloat) return panels_of_codes<Format>(task);
    }
    expanded(task, [&](int64_t n, int64_t k0, int64_t k1, float* to) {
        return expand_span_row<Format>(task.w.codes + n * task.w.code_stride,
                                       block_scale(task.w, n), task.w.group, k0, k1, to);
    });
}

template <class Format>
void grouped(const Task& task) {
    if (task.w.interleaved) {
        return task.num_tokens < kInt8TileFrom ? slabs<NibbleSlab<Format>>(task)
                                               : int8_tiled<Format>(task);
    }
    if (task.num_tokens <= kMostGroupedRows && task.x.kind == ActivationKind::kFloat) {
        return direct<GroupedFloat<Format>>(task);
    }
    expanded(task, [&](int64_t n, int64_t k0, int64_t k1, float* to) {
        return expand_row<Format>(row_of(task.w, n, Format::kGroup), k0, k1, to);
    });
}

template <int kind>
void int4(const Task& task) {
    if (task.w.zero_point) {
        grouped<Int4<kind, true>>(task);
    } else {
        grouped<Int4<kind, false>>(task);
    }
}

void matmul(const Matrix& w, int64_t n0, int64_t n1, const Activations& x, const int32_t* tokens,
            int64_t num_tokens, float* c, int64_t ldc, void* scratch) {
    const Task task{w, n0, n1, x, tokens, num_tokens, c, ldc, scratch};
    switch (w.format) {
        case M2_BF16: return spans<Bf16>(task);
        case M2_F16: return spans<F16>(task);
        case M2_F32: return spans<F32>(task);
        case M2_FP8_BLOCK: return spans<Fp8>(task);
        case M2_NVFP4: return grouped<Nvfp4>(task);
        case M2_MXFP4: return grouped<Mxfp4>(task);
        case M2_INT4:
            if (w.scale_type == M2_BF16) return int4<M2_BF16>(task);
            return w.scale_type == M2_F16 ? int4<M2_F16>(task) : int4<M2_F32>(task);
        case M2_INT8:
            return w.interleaved ? slabs<ByteSlab>(task) : spans<Int8>(task);
    }
}

}  // namespace
}  // namespace m2::M2_ISA
