#include "prepared.h"

#include <algorithm>

#include "pool.h"

namespace m2 {
namespace {

// With fewer rows the product with float32 activations reads the codes in place.
constexpr int64_t kBf16From = 5;
// Columns behind a row of activations: whole units of every format.
constexpr int64_t kApart = 128;
// More turned activations than this have left the caches before they are read.
constexpr int64_t kStreamedBytes = int64_t{4} << 20;
// Numbers that are prepared before another thread would have begun to help.
constexpr int64_t kAloneBelow = 4096;
// Floats of a vector, of any instruction set: rows of whole vectors need nothing behind them.
constexpr int64_t kMostLanes = 16;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

int64_t type_bytes(int32_t type) { return type == M2_F32 ? 4 : 2; }

int64_t code_bytes(const m2_weight& weight) {
    switch (weight.format) {
        case M2_F32: return weight.columns * 4;
        case M2_BF16:
        case M2_F16: return weight.columns * 2;
        case M2_FP8_BLOCK:
        case M2_INT8: return weight.columns;
        default: return weight.columns / 2;
    }
}

// Of a row; for FP8 of a row of blocks.
int64_t scale_bytes(const m2_weight& weight) {
    switch (weight.format) {
        case M2_FP8_BLOCK: return (weight.columns + weight.group - 1) / weight.group * 4;
        case M2_NVFP4:
        case M2_MXFP4: return weight.columns / weight.group;
        case M2_INT4: return weight.columns / weight.group * type_bytes(weight.scale_type);
        case M2_INT8: return type_bytes(weight.scale_type);
        default: return 0;
    }
}

// Of a row of activations. Those that a kernel reads side by side do not begin a power of two apart:
// they would all lie in the same few lines of the first cache.
int64_t padded_columns(const m2_weight& weight, ActivationKind kind) {
    switch (kind) {
        case ActivationKind::kTiles:
            return round_up(weight.columns, 2 * kSlabColumns) + kSlabColumns;
        case ActivationKind::kTurned: return weight.columns;
        case ActivationKind::kInt8: return round_up(weight.columns, kPad);
        default: return round_up(weight.columns, kPad) + kApart;
    }
}

}  // namespace

Matrix matrix_of(const m2_weight& weight, int64_t index) {
    Matrix one{};
    one.format = weight.format;
    one.scale_type = weight.scale_type;
    one.group = weight.group;
    one.block_rows = weight.block_rows;
    one.rows = weight.rows;
    one.columns = weight.columns;
    one.code_stride = code_bytes(weight);
    one.scale_stride = scale_bytes(weight);
    one.zero_stride = weight.zero_point ? weight.columns / weight.group : 0;
    const int64_t scale_rows =
        weight.format == M2_FP8_BLOCK
            ? (weight.rows + weight.block_rows - 1) / weight.block_rows
            : weight.rows;
    one.codes = static_cast<const uint8_t*>(weight.codes) + index * weight.rows * one.code_stride;
    if (weight.scale) {
        one.scale =
            static_cast<const uint8_t*>(weight.scale) + index * scale_rows * one.scale_stride;
    }
    if (weight.zero_point) {
        one.zero_point = weight.zero_point + index * weight.rows * one.zero_stride;
    }
    one.global_scale = weight.global_scale ? weight.global_scale[index] : 1.0f;
    one.interleaved = weight.interleaved != 0;
    return one;
}

RowBytes row_bytes(const m2_weight& weight) {
    const bool by_rows = weight.format != M2_FP8_BLOCK;
    return {code_bytes(weight), by_rows ? scale_bytes(weight) : 0,
            weight.zero_point ? weight.columns / weight.group : 0};
}

ActivationKind kind_for(const m2_weight& weight, m2_activation activation, int64_t rows) {
    const int64_t turned_from = best_kernels()->turned_from;
    const bool is_whole = weight.rows >= kSlabRows && weight.columns > 0 &&
                          weight.columns % kSlabColumns == 0;
    if (weight.format == M2_BF16 && is_whole && turned_from > 0 && rows >= turned_from &&
        activation != M2_ACTIVATION_FLOAT) {
        return ActivationKind::kTurned;
    }
    const int64_t tiles_from = best_kernels()->tiles_from;
    const bool has_tiles = tiles_from > 0 && rows >= tiles_from && weight.format != M2_F32;
    if (has_tiles && activation != M2_ACTIVATION_FLOAT) return ActivationKind::kTiles;
    if (weight.interleaved) return ActivationKind::kInt8;
    const bool rounds = activation != M2_ACTIVATION_FLOAT && weight.format != M2_F32;
    return rounds && rows >= kBf16From && best_kernels()->has_bf16 ? ActivationKind::kBf16
                                                                   : ActivationKind::kFloat;
}

int64_t least_rows(const m2_weight& weight) {
    return std::max(kLeastRows, weight.interleaved);
}

bool share_activations(const m2_weight& a, const m2_weight& b) {
    return a.format == b.format && !a.zero_point == !b.zero_point &&
           a.interleaved == b.interleaved;
}

Activations make_activations(const m2_weight& weight, ActivationKind kind, int64_t num_rows,
                             Workspace& workspace) {
    Activations x{};
    x.kind = kind;
    x.group = weight.format == M2_NVFP4 ? 16 : 32;
    x.columns = weight.columns;
    const bool tiles = kind == ActivationKind::kTiles, turned = kind == ActivationKind::kTurned;
    x.padded = padded_columns(weight, kind);
    if (tiles) num_rows += kSlabRows - 1;
    if (turned) num_rows = round_up(num_rows, kSlabRows);
    const int64_t size = kind == ActivationKind::kFloat ? 4 : kind == ActivationKind::kInt8 ? 1 : 2;
    const int64_t values = num_rows * x.padded * size;
    const int64_t groups = tiles || turned ? 0 : num_rows * (x.padded / x.group);
    auto* memory = static_cast<uint8_t*>(workspace.get(values + 2 * groups * 4));
    x.values = memory;
    x.is_streamed = turned && values > kStreamedBytes;
    x.scale = reinterpret_cast<float*>(memory + values);
    x.sum = x.scale + groups;
    return x;
}

namespace {

// run(piece, thread) for every piece of so many numbers.
template <class Run>
void for_pieces(int64_t pieces, int64_t numbers, bool alone, const Run& run) {
    if (alone || numbers < kAloneBelow) {
        for (int64_t piece = 0; piece < pieces; ++piece) run(piece, 0);
    } else {
        parallel_for(pieces, run);
    }
}

void prepare_slabs(const Activations& activations, int64_t num_rows, const float* x,
                   const int32_t* rows, bool alone) {
    const auto prepare_slab = [&](int64_t slab, int) {
        const float* from[kSlabRows];
        for (int64_t i = 0; i < kSlabRows; ++i) {
            const int64_t at = slab * kSlabRows + i;
            const int64_t row = at >= num_rows ? -1 : rows ? rows[at] : at;
            from[i] = row < 0 ? nullptr : x + row * activations.columns;
        }
        best_kernels()->prepare_slab(activations, slab, from);
    };
    const int64_t slabs = (num_rows + kSlabRows - 1) / kSlabRows;
    for_pieces(slabs, num_rows * activations.columns, alone, prepare_slab);
}

}  // namespace

void prepare(const m2_weight& weight, const Activations& activations, int64_t num_rows,
             const float* x, const int32_t* rows, bool alone) {
    if (activations.kind == ActivationKind::kTurned) {
        return prepare_slabs(activations, num_rows, x, rows, alone);
    }
    const Matrix any = matrix_of(weight, 0);
    const auto prepare_row = [&](int64_t row, int) {
        const int64_t from = rows ? rows[row] : row;
        best_kernels()->prepare_row(any, activations, row, x + from * weight.columns);
    };
    for_pieces(num_rows, num_rows * weight.columns, alone, prepare_row);
}

Activations prepared(const m2_weight& weight, ActivationKind kind, int64_t num_rows,
                     const float* x, Workspace& workspace, bool alone) {
    const int64_t columns = weight.columns;
    if (weight.format == M2_F32 && columns % kMostLanes == 0) {
        auto* values = const_cast<float*>(x);  // nothing writes them; no sums are asked for
        return {kind, static_cast<int32_t>(columns), false, false, columns, columns,
                values, values, values};
    }
    const Activations filled = make_activations(weight, kind, num_rows, workspace);
    prepare(weight, filled, num_rows, x, nullptr, alone);
    return filled;
}

}  // namespace m2
