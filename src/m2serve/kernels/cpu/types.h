// What the C interface, the orchestration and the kernels of each instruction set agree on.
#pragma once

#include <cstdint>

extern "C" {

enum m2_format : int32_t {
    M2_BF16 = 0,
    M2_F16 = 1,
    M2_F32 = 2,
    M2_FP8_BLOCK = 3,
    M2_NVFP4 = 4,
    M2_MXFP4 = 5,
    M2_INT4 = 6,
    M2_INT8 = 7,
};

// What the activations become before they are multiplied. FLOAT: float32, products with the exact
// weights. BF16: bfloat16 on a machine that multiplies it and where rows are many enough to gain,
// otherwise as FLOAT. INT8: int8 with a scale for every 16 (NVFP4) or 32 values, for formats with
// an integer code whose rows are interleaved; otherwise as BF16. Many rows on a machine with AMX are
// as BF16 unless FLOAT was asked for: its tiles have no scales inside a sum, and lose less.
enum m2_activation : int32_t {
    M2_ACTIVATION_FLOAT = 0,
    M2_ACTIVATION_BF16 = 1,
    M2_ACTIVATION_INT8 = 2
};

// `matrices` contiguous matrices of [rows, columns] in the layout of checkpoint/weights.py.
// scale_type is M2_BF16, M2_F16 or M2_F32 (INT4, INT8). group is the columns a scale covers;
// block_rows the rows (FP8). zero_point may be null (INT4: 8). global_scale: one for every matrix
// (NVFP4). cpu_weights.py says which sizes the kernels take. interleaved: 0 for that layout, else the
// rows of a slab as interleave.h makes it.
struct m2_weight {
    int32_t format;
    int32_t scale_type;
    int64_t matrices, rows, columns;
    int32_t group, block_rows;
    const void* codes;
    const void* scale;
    const uint8_t* zero_point;
    const float* global_scale;
    int64_t interleaved;
};

}  // extern "C"

namespace m2 {

// Padding of a row of activations: whole superblocks of scales in every instruction set.
constexpr int64_t kPad = 512;

// What is multiplied next: a row of a matrix of the same size, and its number; null: unknown.
struct NextRows {
    const uint8_t* at;
    int64_t row;
};

// One matrix of an m2_weight, with byte strides.
struct Matrix {
    int32_t format, scale_type, group, block_rows;
    int64_t rows, columns;
    const uint8_t* codes;
    const uint8_t* scale;
    const uint8_t* zero_point;
    float global_scale;
    int64_t code_stride, scale_stride, zero_stride;  // bytes of a row (FP8 scale: of a block row)
    bool interleaved;
    NextRows next;

    const uint8_t* row(int64_t n) const { return codes + n * code_stride; }
    NextRows from(int64_t n) const { return {row(n), n}; }
};

// kTiles: bfloat16 in the order of the columns, for tile registers, which read whole tiles of rows
// that follow one another. kTurned: bfloat16 for tile registers that read weights as they are stored:
// [rows / 16, columns / 32, 16 pairs of columns, 16 rows, 2].
enum class ActivationKind : int32_t { kFloat, kBf16, kInt8, kTiles, kTurned };

// Of a tile of activations: a slab of kTurned is one after another.
constexpr int64_t kSlabRows = 16, kSlabColumns = 32;

// Of activations, of which a slice meets every row of weights before the next: half of the second
// cache.
constexpr int64_t kSliceBytes = 1 << 20;

inline bool is_for_tiles(ActivationKind kind) {
    return kind == ActivationKind::kTiles || kind == ActivationKind::kTurned;
}

// Activations as the kernels want them: padded with zeros, permuted to the order in which the
// format's bytes unfold (int8 of four-bit formats: of every eight columns the even ones first).
// scale and sum have an entry for every `group` columns: the int8 scale, and the sum of the
// (dequantised) values, which a zero point multiplies. Of int8 values for formats whose code of zero
// is the same everywhere, sum is an int32 instead: what their products are to begin with, less that
// code times the sum of the int8 values.
struct Activations {
    ActivationKind kind;
    int32_t group;
    // Of kTurned: whether they, and what they are multiplied to, are more than caches hold and so
    // are written past them.
    bool is_streamed, streams_results;
    int64_t columns, padded;
    void* values;
    float* scale;
    float* sum;
};

// Where a product is added: factors[m] times row m to row rows[m] of y, `stride` floats apart.
struct AddTo {
    float* y;
    int64_t stride;
    const int32_t* rows;
    const float* factors;
};

// The kernels of one instruction set.
struct Kernels {
    const char* name;
    bool has_bf16;
    int64_t tiles_from;  // rows from which activations are kTiles; 0: never
    int64_t turned_from;  // rows from which activations for BF16 weights are kTurned; 0: never
    int lanes;  // rows of a slab of interleaved weights
    // Row `row` of the activations from `columns` float32 values. Needs no scratch.
    void (*prepare_row)(const Matrix&, const Activations&, int64_t row, const float* x);
    // c[m * ldc + n - n0] for rows n0..n1 of the matrix and activation rows tokens[m] (m if null; of
    // kTiles and kTurned they follow one another, of kTurned from a slab's first on).
    // `scratch` has scratch_bytes(), 64-byte aligned.
    void (*matmul)(const Matrix&, int64_t n0, int64_t n1, const Activations&, const int32_t* tokens,
                   int64_t num_tokens, float* c, int64_t ldc, void* scratch);
    int64_t scratch_bytes;
    // gate = silu(gate) * up.
    void (*silu_mul)(float* gate, const float* up, int64_t size);
    // What matmul gives of kTiles or kTurned added to y, which begins at column n0. Null where there
    // are no tiles.
    void (*add_matmul)(const Matrix&, int64_t n0, int64_t n1, const Activations&,
                       const int32_t* tokens, int64_t num_tokens, const AddTo& to,
                       void* scratch) = nullptr;
    // Columns n0..n1 of hidden = silu(w1 x) * (w3 x) of the same rows of x and hidden, both kTiles
    // or both kTurned; with the last columns also what pads them. Null where there are no tiles.
    // `scratch` has gate_up_scratch_bytes(w1.columns), 64-byte aligned.
    void (*gate_up)(const Matrix& w1, const Matrix& w3, int64_t n0, int64_t n1, const Activations& x,
                    const int32_t* tokens, int64_t num_tokens, const Activations& hidden,
                    void* scratch) = nullptr;
    int64_t (*gate_up_scratch_bytes)(int64_t columns) = nullptr;
    // Slab `slab` of kTurned activations from 16 rows of `columns` float32 values; null: zeros.
    void (*prepare_slab)(const Activations&, int64_t slab, const float* const* rows) = nullptr;
};

const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
#ifdef M2_HAS_AMX
const Kernels* amx_kernels();
#endif
const Kernels* best_kernels();  // null when the machine has none; M2_CPU_ISA may force one

}  // namespace m2
