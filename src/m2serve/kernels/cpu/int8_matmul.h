// Whole matrices against many rows of int8 activations, by the tiles of int8_tile.h.
#pragma once

#include "int8_tile.h"
#include "task.h"

namespace m2::M2_ISA {
namespace {

// Every tile against the tokens, slice by slice. expand(tile, its row, n, k0, k1) fills tile.rows,
// order(from, to) brings the values of an activation into the same order.
template <class Codes, int group, bool is_scaled, class Expand, class Order>
void int8_tiled(const Task& task, const Expand& expand, const Order& order) {
    auto& tile = *static_cast<Int8Tile*>(task.scratch);
    Int8Activations x[kInt8Slice];
    for (int64_t m = 0; m < task.num_tokens; ++m) {
        std::memset(task.out(m, task.n0), 0, sizeof(float) * (task.n1 - task.n0));
    }
    for (int64_t m0 = 0; m0 < task.num_tokens; m0 += kInt8Slice) {
        const int64_t left = task.num_tokens - m0;
        const int64_t count = left < kInt8Slice ? left : kInt8Slice;
        for (int64_t k0 = 0; k0 < task.w.columns; k0 += kTileColumns) {
            const int64_t behind = task.w.columns - k0;
            const int64_t columns = behind < kTileColumns ? behind : kTileColumns;
            for (int64_t m = 0; m < count; ++m) {
                const Int8Activations whole = int8_activations(task.x, task.token(m0 + m));
                x[m] = {whole.values + k0, whole.scale + k0 / group, whole.sum + k0 / group};
                order(x[m].values, tile.x[m]);
            }
            for (int64_t n = task.n0; n < task.n1; n += kInt8Rows) {
                const int64_t rows = task.n1 - n < kInt8Rows ? task.n1 - n : kInt8Rows;
                // Rows that are not there are computed from what is left of others, and not kept.
                for (int64_t r = 0; r < rows; ++r) {
                    expand(tile, r, n + r, k0, k0 + columns);
                    tile.factor[r] = factor_of_row(task, n + r);
                }
                interleave(tile, (columns + 31) / 32 * 32 / Codes::kColumns);
                int8_tile<Codes, group, is_scaled>(tile, columns, rows, count, x, task.out(m0, n),
                                                   task.ldc);
            }
        }
    }
}

template <class Format>
void int8_nibbles(const Task& task) {
    constexpr int kGroup = Format::kGroup;
    int8_tiled<QuadCodes<Format::kMostCode>, kGroup, true>(
        task,
        [&](Int8Tile& tile, int64_t r, int64_t n, int64_t k0, int64_t k1) {
            expand_nibbles<Format>(tile, r, row_of(task.w, n, kGroup), k0, k1);
        },
        [](const int8_t* from, int32_t* to) {
            order_groups<kGroup>(from, reinterpret_cast<int8_t*>(to));
        });
}

inline void int8_bytes(const Task& task) {
    int8_tiled<PairCodes, 32, false>(
        task,
        [&](Int8Tile& tile, int64_t r, int64_t n, int64_t k0, int64_t k1) {
            alignas(16) int8_t bytes[kTileColumns];
            const int64_t size = k1 - k0, whole = (size + 31) / 32 * 32;
            std::memcpy(bytes, task.w.codes + n * task.w.code_stride + k0,
                        static_cast<size_t>(size));
            std::memset(bytes + size, 0, static_cast<size_t>(whole - size));
            widen(bytes, whole, reinterpret_cast<int16_t*>(tile.rows[r]));
        },
        [](const int8_t* from, int32_t* to) {
            widen(from, kTileColumns, reinterpret_cast<int16_t*>(to));
        });
}

}  // namespace
}  // namespace m2::M2_ISA
