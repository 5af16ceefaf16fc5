// The product of many rows: a tile of weights is expanded once, then kTileRows of its rows meet
// kTileTokens rows of activations in registers. Both lie along the columns, so nothing is
// transposed; the lanes are summed once for every kTileColumns columns.
#pragma once

#include "spans.h"

namespace m2::M2_ISA {
namespace {

constexpr int64_t kTileColumns = kPad;
constexpr int64_t kTileHeight = 32;

// A tile of 8 rows lies in the first cache; many rows of activations are better read less often.
inline int64_t tile_height(int64_t num_tokens) { return num_tokens < 48 ? 8 : kTileHeight; }

template <int R>
inline void add_sums(const F* acc, const float* factor, float* c) {
    if constexpr (R == 4) {
        const __m128 product = _mm_mul_ps(_mm_loadu_ps(factor), sum4(acc));
        _mm_storeu_ps(c, _mm_add_ps(_mm_loadu_ps(c), product));
    } else {
        each<R>([&](auto r) { c[r] += factor[r] * sum(acc[r]); });
    }
}

// R rows of the tile times T rows of activations over `columns`, added to c.
template <int R, int T>
inline void tile_block(const float* tile, const float* const* x, int64_t columns,
                       const float* factor, float* c, int64_t ldc) {
    F acc[T * R];
    each<T * R>([&](auto i) { acc[i] = zero(); });
    for (int64_t k = 0; k < columns; k += kLanes) {
        F w[R];
        each<R>([&](auto r) { w[r] = load(tile + r * kTileColumns + k); });
        each<T>([&](auto t) {
            const F value = load(x[t] + k);
            each<R>([&](auto r) { acc[t * R + r] = fma(w[r], value, acc[t * R + r]); });
        });
    }
    each<T>([&](auto t) { add_sums<R>(acc + t * R, factor, c + t * ldc); });
}

#ifdef M2_HAS_BF16_DOT
template <int R, int T>
inline void tile_block(const uint16_t* tile, const uint16_t* const* x, int64_t columns,
                       const float* factor, float* c, int64_t ldc) {
    F acc[T * R];
    each<T * R>([&](auto i) { acc[i] = zero(); });
    for (int64_t k = 0; k < columns; k += 2 * kLanes) {
        I w[R];
        each<R>([&](auto r) { w[r] = load_bytes(tile + r * kTileColumns + k); });
        each<T>([&](auto t) {
            const I value = load_bytes(x[t] + k);
            each<R>([&](auto r) { acc[t * R + r] = dot_bf16(acc[t * R + r], w[r], value); });
        });
    }
    each<T>([&](auto t) { add_sums<R>(acc + t * R, factor, c + t * ldc); });
}
#endif

template <int T, class Value>
inline void tile_rows(const Value* tile, int64_t rows, const Value* const* x, int64_t columns,
                      const float* factor, float* c, int64_t ldc) {
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
        tile_block<kTileRows, T>(tile + r * kTileColumns, x, columns, factor + r, c + r, ldc);
    }
    for (; r < rows; ++r) {
        tile_block<1, T>(tile + r * kTileColumns, x, columns, factor + r, c + r, ldc);
    }
}

// All tokens against one tile.
template <int T, class Value>
inline int64_t tile_tokens(const Value* tile, int64_t rows, const Activations& x,
                           const int32_t* tokens, int64_t from, int64_t num_tokens, int64_t k0,
                           int64_t columns, const float* factor, float* c, int64_t ldc) {
    const auto* values = static_cast<const Value*>(x.values) + k0;
    for (; from + T <= num_tokens; from += T) {
        const Value* row[T];
        for (int t = 0; t < T; ++t) {
            const int64_t token = tokens ? tokens[from + t] : from + t;
            row[t] = values + token * x.padded;
        }
        tile_rows<T>(tile, rows, row, columns, factor, c + from * ldc, ldc);
    }
    return from;
}

template <int T, class Value>
inline void tile_all_tokens(const Value* tile, int64_t rows, const Activations& x,
                            const int32_t* tokens, int64_t from, int64_t num_tokens, int64_t k0,
                            int64_t columns, const float* factor, float* c, int64_t ldc) {
    from = tile_tokens<T>(tile, rows, x, tokens, from, num_tokens, k0, columns, factor, c, ldc);
    if constexpr (T > 1) {
        if (from < num_tokens) {
            tile_all_tokens<T - 1>(tile, rows, x, tokens, from, num_tokens, k0, columns, factor, c,
                                   ldc);
        }
    }
}

}  // namespace
}  // namespace m2::M2_ISA
