// Both products before the gate of an expert and the gate itself: 16 rows of W1 and the same of W3
// meet the activations in the tile registers over all columns, and what leaves them is
// bfloat16(silu(W1 x) * W3 x), the activations of the product behind it.
#pragma once

#include "tiles_stored.h"

namespace m2::M2_ISA {
namespace {

// The sums of turned activations, of which others need the first pair, and two slabs of weights.
int64_t gate_up_scratch_bytes(int64_t columns) {
    return kSlicePairs * static_cast<int64_t>(sizeof(TileSums)) +
           2 * steps_of(columns) * static_cast<int64_t>(sizeof(ExpandedStep));
}

// What is asked for during the products of row n: the rows below, or the first for the tokens' next
// slice, or of the next expert.
inline Ahead slabs_behind(const Task& gate, const Task& up, int64_t n, bool is_last_slice) {
    const int64_t stride = gate.w.code_stride;
    Ahead ahead;
    if (n + kLanes < gate.n1) {
        const int64_t rows = std::min<int64_t>(kLanes, gate.n1 - n - kLanes);
        for (const Task* task : {&gate, &up}) {
            ahead.add(task->w.row(n + kLanes), 1, rows * stride, 0);
        }
    } else if (const uint8_t* codes = is_last_slice ? up.w.next.at : gate.w.row(gate.n0)) {
        ahead.add(codes, 1, std::min<int64_t>(kLanes, gate.n1 - gate.n0) * stride, 0);
    }
    return ahead;
}

// Where the results of a block of tokens go: rows of bfloat16, `stride` numbers apart.
struct HiddenBlock {
    uint16_t* to;
    int64_t stride, tokens;
    __mmask16 rows;
};
inline void store_gated(const float (*gate)[kLanes], const float (*up)[kLanes], F gate_factor,
                        F up_factor, const HiddenBlock& block) {
    for (int64_t i = 0; i < block.tokens; ++i) {
        const F gated = silu_times(mul(load(gate[i]), gate_factor), mul(load(up[i]), up_factor));
        _mm256_mask_storeu_epi16(block.to + i * block.stride, block.rows,
                                 (__m256i)_mm512_cvtneps_pbh(gated));
    }
}

struct Hidden {
    uint16_t* values;  // of the first token, column 0
    int64_t stride;
};

template <class Tiles>
void gate_up_slab(const Task& gate, const Task& up, int64_t n, int64_t m0, int64_t m1,
                  const Hidden& hidden) {
    auto& sums = *static_cast<TileSums*>(gate.scratch);
    auto* first = reinterpret_cast<ExpandedStep*>(&sums + 1);
    const int64_t steps = steps_of(gate.w.columns);
    expand_steps<Tiles>(gate, n, 0, steps, first);
    expand_steps<Tiles>(up, n, 0, steps, first + steps);
    const F gate_factor = tile_factor(gate, n), up_factor = tile_factor(up, n);
    const int64_t rows = std::min<int64_t>(kLanes, gate.n1 - n);
    const auto there = static_cast<__mmask16>((1u << rows) - 1);
    Ahead ahead = slabs_behind(gate, up, n, m1 == gate.num_tokens);
    const int64_t lines = ahead.lines_a_step(steps * block_pairs(m1 - m0));
    for (int64_t m = m0; m < m1; m += 2 * kRegisterRows) {
        const int num_blocks = m + kRegisterRows < m1 ? 2 : 1;
        tile_products(num_blocks, 2, activations_against(gate, m, 0, first, first + steps, steps),
                      sums, [&] { ahead.ask(lines); });
        for (int t = 0; t < num_blocks; ++t) {
            const int64_t token = m + t * kRegisterRows;
            store_gated(sums.of[t][0], sums.of[t][1], gate_factor, up_factor,
                        {hidden.values + token * hidden.stride + n, hidden.stride,
                         std::min(kRegisterRows, m1 - token), there});
        }
    }
}

// Two tasks of the same rows and tokens, which follow one another in x and in hidden.
void tiled_gate_up(const Task& gate, const Task& up, const Activations& hidden) {
    const TileRegisters registers;
    if (gate.x.kind == ActivationKind::kTurned) {
        auto* sums = static_cast<TileSums*>(gate.scratch);
        return hidden.is_streamed ? stored_gate_up<true>(gate, up, hidden, sums)
                                  : stored_gate_up<false>(gate, up, hidden, sums);
    }
    const Hidden to{static_cast<uint16_t*>(hidden.values) + gate.token(0) * hidden.padded,
                    hidden.padded};
    with_tiles(gate.w, [&](auto tiles) {
        const int64_t slice = slice_tokens(gate.w.columns);
        for (int64_t m0 = 0; m0 < gate.num_tokens; m0 += slice) {
            const int64_t m1 = std::min(gate.num_tokens, m0 + slice);
            for (int64_t n = gate.n0; n < gate.n1; n += kLanes) {
                gate_up_slab<decltype(tiles)>(gate, up, n, m0, m1, to);
            }
        }
    });
    if (gate.n1 < gate.w.rows) return;
    for (int64_t m = 0; m < gate.num_tokens; ++m) {  // what a tile reads behind the last column
        std::memset(to.values + m * to.stride + gate.n1, 0,
                    static_cast<size_t>(hidden.padded - gate.n1) * 2);
    }
}

}  // namespace
}  // namespace m2::M2_ISA
