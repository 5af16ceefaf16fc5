// Activations on their way into a product: laid out and filled for one format.
#pragma once

#include "workspace.h"
#include "types.h"

namespace m2 {

// Matrix `index` of the weight.
Matrix matrix_of(const m2_weight& weight, int64_t index);

// The form `activation` takes for this weight when about `rows` rows meet each of its matrices; of
// interleaved weights int8, or bfloat16 in tiles.
ActivationKind kind_for(const m2_weight& weight, m2_activation activation, int64_t rows);

// Whether one set of activations serves both weights.
bool share_activations(const m2_weight& a, const m2_weight& b);

// Bytes from a row to the next of a weight's codes; of its scales and of its zero points, 0 where
// they are none or not by rows.
struct RowBytes {
    int64_t codes, scale, zero_point;
};
RowBytes row_bytes(const m2_weight& weight);

// What borders between rows of the weight that different threads compute are multiples of.
int64_t least_rows(const m2_weight& weight);

// Room for `num_rows` rows in `workspace`, for `prepare` to fill; for kTiles there is memory for a whole
// tile of rows behind the last.
Activations make_activations(const m2_weight& weight, ActivationKind kind, int64_t num_rows,
                             Workspace& workspace);

// Fills row i from row rows[i] of x [.., columns], i if null, of kTurned with zeros for -1; by the
// caller alone where that is faster, or where `alone`.
void prepare(const m2_weight& weight, const Activations& activations, int64_t num_rows,
             const float* x, const int32_t* rows = nullptr, bool alone = false);

// `num_rows` rows of x in the form `kind`: themselves where they have it, else in `workspace`.
Activations prepared(const m2_weight& weight, ActivationKind kind, int64_t num_rows,
                     const float* x, Workspace& workspace, bool alone = false);

}  // namespace m2
