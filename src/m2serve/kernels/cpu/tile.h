// The product of many rows of bfloat16 activations, where the CPU multiplies them: a tile of weights
// is expanded once, then kTileRows of its rows meet kTileTokens rows of activations in registers.
// Both lie along the columns, so nothing is transposed; the lanes are summed once for every
// kTileColumns columns.
#pragma once

#include "dot_rows.h"

namespace m2::M2_ISA {
namespace {

#ifdef M2_HAS_BF16_DOT
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

template <int T>
inline void tile_rows(const uint16_t* tile, int64_t rows, const uint16_t* const* x, int64_t columns,
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
template <int T>
inline int64_t tile_tokens(const uint16_t* tile, int64_t rows, const Activations& x,
                           const int32_t* tokens, int64_t from, int64_t num_tokens, int64_t k0,
                           int64_t columns, const float* factor, float* c, int64_t ldc) {
    const auto* values = static_cast<const uint16_t*>(x.values) + k0;
    for (; from + T <= num_tokens; from += T) {
        const uint16_t* row[T];
        for (int t = 0; t < T; ++t) {
            const int64_t token = tokens ? tokens[from + t] : from + t;
            row[t] = values + token * x.padded;
        }
        tile_rows<T>(tile, rows, row, columns, factor, c + from * ldc, ldc);
    }
    return from;
}

template <int T>
inline void tile_all_tokens(const uint16_t* tile, int64_t rows, const Activations& x,
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

// Rows n.. and columns k0..k1 of the weights, expanded.
template <class Expand>
inline int64_t expand_tile(const Expand& expand, int64_t n, int64_t rows, int64_t k0, int64_t k1,
                           uint16_t* tile) {
    alignas(64) float row[kTileColumns];
    int64_t columns = 0;
    for (int64_t r = 0; r < rows; ++r) {
        columns = expand(n + r, k0, k1, row);
        for (; columns % (2 * kLanes) != 0; columns += kLanes) store(row + columns, zero());
        for (int64_t k = 0; k < columns; k += 2 * kLanes) {
            store_bf16(tile + r * kTileColumns + k, load(row + k), load(row + k + kLanes));
        }
    }
    return columns;
}
inline int64_t expand_tile(const StoredRows& stored, int64_t n, int64_t rows, int64_t k0,
                           int64_t k1, uint16_t* tile) {
    int64_t columns = 0;
    for (int64_t r = 0; r < rows; ++r) {
        columns = stored.copy(n + r, k0, k1, tile + r * kTileColumns);
    }
    return columns;
}

// Every tile of the task against tokens m0..m1, whose columns of one tile stay in the second cache.
template <class Expand>
void tiles_of_slice(const Task& task, const Expand& expand, int64_t m0, int64_t m1) {
    auto* tile = static_cast<uint16_t*>(task.scratch);
    float factor[kTileHeight];
    const int64_t height = tile_height(task.num_tokens);
    for (int64_t k0 = 0; k0 < task.w.columns; k0 += kTileColumns) {
        const int64_t left = task.w.columns - k0;
        const int64_t k1 = k0 + (left < kTileColumns ? left : kTileColumns);
        for (int64_t n = task.n0; n < task.n1; n += height) {
            const int64_t rows = task.n1 - n < height ? task.n1 - n : height;
            for (int64_t r = 0; r < rows; ++r) factor[r] = factor_of_row(task, n + r);
            const int64_t columns = expand_tile(expand, n, rows, k0, k1, tile);
            tile_all_tokens<kTileTokens>(tile, rows, task.x, task.tokens, m0, m1, k0, columns,
                                         factor, task.out(0, n), task.ldc);
        }
    }
}

template <class Expand>
void tiled(const Task& task, const Expand& expand) {
    for (int64_t m = 0; m < task.num_tokens; ++m) {
        std::memset(task.out(m, task.n0), 0, sizeof(float) * (task.n1 - task.n0));
    }
    for_slices(task, [&](int64_t m0, int64_t m1) { tiles_of_slice(task, expand, m0, m1); });
}

constexpr int64_t kTileBytes = kTileColumns * kTileHeight * 2;
#else
constexpr int64_t kTileBytes = 0;
#endif

}  // namespace
}  // namespace m2::M2_ISA
