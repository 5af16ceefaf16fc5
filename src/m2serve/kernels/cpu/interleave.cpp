#include "interleave.h"

#include <cstring>

#include "pool.h"
#include "prepared.h"

namespace m2 {
namespace {

constexpr int64_t kStepBytes = 4;  // of codes

// `lanes` rows of `stride` bytes, as rows of elements of `size` bytes: the elements of a column
// become neighbours. `aside` has room for all of them.
template <int size>
void turn(uint8_t* slab, int64_t lanes, int64_t stride, uint8_t* aside) {
    std::memcpy(aside, slab, static_cast<size_t>(lanes * stride));
    for (int64_t i = 0; i < stride / size; ++i) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            std::memcpy(slab + (i * lanes + lane) * size, aside + lane * stride + i * size, size);
        }
    }
}

// All slabs of `rows` rows; `memory` may be null.
template <int size>
void turn_all(const void* memory, int64_t rows, int64_t lanes, int64_t stride) {
    auto* first = static_cast<uint8_t*>(const_cast<void*>(memory));
    if (!first || stride == 0) return;
    const int64_t at_once = kMostRows / lanes, slabs = rows / lanes;
    parallel_for((slabs + at_once - 1) / at_once, [&](int64_t chunk, int) {
        thread_local Workspace aside;
        auto* room = static_cast<uint8_t*>(aside.get(lanes * stride));
        const int64_t end = std::min(slabs, (chunk + 1) * at_once);
        for (int64_t slab = chunk * at_once; slab < end; ++slab) {
            turn<size>(first + slab * lanes * stride, lanes, stride, room);
        }
    });
}

}  // namespace

bool can_interleave(const m2_weight& weight) {
    if (weight.rows % best_kernels()->lanes != 0) return false;
    switch (weight.format) {
        case M2_NVFP4:
        case M2_MXFP4:
        case M2_INT4: return weight.columns % weight.group == 0;
        case M2_INT8: return weight.columns % kStepBytes == 0;
        default: return false;
    }
}

void interleave(m2_weight& weight) {
    if (weight.interleaved || !can_interleave(weight)) return;
    const int64_t lanes = best_kernels()->lanes, rows = weight.matrices * weight.rows;
    const RowBytes bytes = row_bytes(weight);
    turn_all<kStepBytes>(weight.codes, rows, lanes, bytes.codes);
    if (weight.format == M2_INT4) {
        const auto turn_scales = weight.scale_type == M2_F32 ? turn_all<4> : turn_all<2>;
        turn_scales(weight.scale, rows, lanes, bytes.scale);
    } else if (weight.format != M2_INT8) {
        turn_all<1>(weight.scale, rows, lanes, bytes.scale);
    }
    turn_all<1>(weight.zero_point, rows, lanes, bytes.zero_point);
    weight.interleaved = lanes;
}

}  // namespace m2
