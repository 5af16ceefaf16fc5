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

// From this many rows on, expanding a tile costs less than expanding codes again and again.
constexpr int64_t kTileFrom = 5;
constexpr int64_t kInt8TileFrom = 12;
// Columns of few rows of activations that fit the first cache beside the weights.
constexpr int64_t kFloatColumns = 6144;

constexpr int64_t kScratchBytes = std::max({int64_t{sizeof(Panel)}, int64_t{sizeof(Int8Tile)},
                                            kTileBytes});

// The columns to take at once, a multiple of kPad.
inline int64_t columns_for(int64_t num_tokens) { return kFloatColumns / num_tokens / kPad * kPad; }

template <class Format>
struct GroupedFloat {
    using X = FloatActivations;
    static X activations(const Task& task, int64_t m) {
        return float_activations(task.x, task.token(m));
    }
    template <int M>
    static constexpr int kPlaces = 1;
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
    static constexpr int kPlaces = std::clamp(kSumsAtOnce / (M * kSpanSums<M>), 1, 4);
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

// M rows of activations against every row of weights, in several places by turns: the processor's own
// prefetching brings more from a few places at once than from one.
template <class Product, int M>
inline void direct_rows(const Task& task, int64_t m0, int64_t k0, int64_t k1) {
    constexpr int R = Product::template kPlaces<M>;
    typename Product::X x[M];
    for (int m = 0; m < M; ++m) x[m] = Product::activations(task, m0 + m);
    const int64_t apart = (task.n1 - task.n0) / R;
    for (int64_t i = 0; i < apart; ++i) {
        int64_t n[R];
        each<R>([&](auto r) { n[r] = task.n0 + r * apart + i; });
        direct_block<Product, M, R>(task, m0, n, k0, k1, x);
    }
    for (int64_t n = task.n0 + R * apart; n < task.n1; ++n) {
        direct_block<Product, M, 1>(task, m0, &n, k0, k1, x);
    }
}

template <class Product>
void direct(const Task& task) {
    const int64_t columns_at_once = columns_for(task.num_tokens);
    for (int64_t k0 = 0; k0 < task.w.columns; k0 += columns_at_once) {
        const int64_t left = task.w.columns - k0;
        const int64_t k1 = k0 + (left < columns_at_once ? left : columns_at_once);
        int64_t m = 0;
        for (; m + 4 <= task.num_tokens; m += 4) direct_rows<Product, 4>(task, m, k0, k1);
        if (task.num_tokens - m == 3) {
            direct_rows<Product, 3>(task, m, k0, k1);
        } else if (task.num_tokens - m == 2) {
            direct_rows<Product, 2>(task, m, k0, k1);
        } else if (task.num_tokens - m == 1) {
            direct_rows<Product, 1>(task, m, k0, k1);
        }
    }
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
    if (task.num_tokens < kTileFrom && task.x.kind == ActivationKind::kFloat) {
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
    if (task.num_tokens < kTileFrom && task.x.kind == ActivationKind::kFloat) {
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
