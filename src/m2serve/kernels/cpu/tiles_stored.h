// BF16 weights go into the tile registers from where they are stored, 16 rows by 32 columns, and
// meet activations that were turned once for all of them (ActivationKind::kTurned).
#pragma once

#include "silu.h"
#include "tiles_product.h"

namespace m2::M2_ISA {
namespace {

// Where blocks of weights meet several pairs of slabs: columns in parts of which the first cache
// holds both factors, while the sums wait in memory.
constexpr int64_t kStepsAtOnce = 8;

// A pair of columns of a slab.
template <bool is_streamed>
inline void put_pair(I* to, I pair) {
    if constexpr (is_streamed) {
        _mm512_stream_si512(to, pair);
    } else {
        store_bytes(to, pair);
    }
}
// Before another thread may read what was streamed.
inline void finish_streams(bool is_streamed) {
    if (is_streamed) _mm_sfence();
}

template <bool is_streamed>
void turn_slab(const Activations& x, int64_t slab, const float* const* rows) {
    const int64_t steps = steps_of(x.columns);
    auto* to = static_cast<ExpandedStep*>(x.values) + slab * steps;
    for (int64_t s = 0; s < steps; ++s) {
        F pairs[kLanes];
        for (int r = 0; r < kLanes; ++r) {
            pairs[r] = zero();
            if (!rows[r]) continue;
            const float* from = rows[r] + s * kRegisterColumns;
            pairs[r] = as_float(row_of_floats(load(from), load(from + kLanes)));
        }
        transpose(pairs);
        for (int p = 0; p < kRegisterPairs; ++p) put_pair<is_streamed>(&to[s][p], as_bits(pairs[p]));
    }
    finish_streams(is_streamed);
}

// A slab of 16 rows of activations, from the 16 given; null is a row of zeros.
void prepare_slab(const Activations& x, int64_t slab, const float* const* rows) {
    x.is_streamed ? turn_slab<true>(x, slab, rows) : turn_slab<false>(x, slab, rows);
}

// Of the slab of row m of the task's activations.
inline const ExpandedStep* turned_steps(const Task& task, int64_t m) {
    const int64_t slab = (task.token(0) + m) / kLanes;
    return static_cast<const ExpandedStep*>(task.x.values) + slab * steps_of(task.x.columns);
}

// 16 rows of a matrix, of which those of the task are wanted: at the matrix's end they begin earlier.
struct StoredBlock {
    int64_t n;  // first row
    int begin, end;  // of the wanted ones
    __mmask16 wanted() const { return static_cast<__mmask16>((1u << end) - (1u << begin)); }
};
inline StoredBlock stored_block(const Task& task, int64_t n) {
    const int64_t first = std::min(n, task.w.rows - kRegisterRows);
    return {first, static_cast<int>(n - first),
            static_cast<int>(std::min(task.n1 - first, kRegisterRows))};
}

// Where 16 whole rows are that are read soon: from row n on, or where that is behind the task, as many
// rows behind `next`; where nothing is known, the rows below, which the same thread is likely to
// take, or null.
inline const uint8_t* rows_behind(const Task& task, int64_t n, const NextRows& next) {
    const int64_t last = task.w.rows - kRegisterRows, beyond = n - task.n1;
    if (beyond < 0) return task.w.row(std::min(n, last));
    if (!next.at) return n <= last ? task.w.row(n) : nullptr;
    return next.at + (std::min(next.row + beyond, last) - next.row) * task.w.code_stride;
}

// What is read next, brought near while what came before is multiplied: a line of one place and a line
// of the other by turns, each read and, some lines on, asked for. So the processor's own prefetching
// follows both; it follows rows 16 at a time, as the tiles load them, badly.
class RowsBehind {
  public:
    // 16 rows at either place, or at the first alone.
    RowsBehind(const Task& task, const uint8_t* first, const uint8_t* second)
        : first_(first), lines_(kRegisterRows * task.w.code_stride / kBytes) {
        if (!first) lines_ = 0;
        if (!second) lines_ /= 2;
        apart_ = second ? second - first : lines_ * kBytes;
    }
    // All of them in so many steps.
    void spread(int64_t steps) { at_once_ = (lines_ + steps - 1) / steps; }
    __attribute__((always_inline)) void ask() {
        const int64_t lines = std::min(at_once_, lines_);
        for (int64_t i = 0; i < lines; ++i, first_ += kBytes) {
            bring(first_);
            bring(first_ + apart_);
        }
        lines_ -= lines;
    }

  private:
    static void bring(const uint8_t* line) {
        __builtin_prefetch(line + kAsked);
        asm volatile("" ::"v"(load_bytes(line)));
    }

    static constexpr int64_t kAsked = 2048;
    const uint8_t* first_;
    int64_t apart_, lines_, at_once_ = 0;  // left, of a step
};

// run(m0, m1) for slices of a task's rows of activations.
template <class Run>
inline void for_stored_slices(const Task& task, const Run& run) {
    const int64_t rows = slice_tokens(task.w.columns);
    for (int64_t m = 0; m < task.num_tokens; m += rows) {
        run(m, std::min(task.num_tokens, m + rows));
    }
}

// One or two blocks of weights, which begin at `rows`; of one both entries are the same.
struct StoredBlocks {
    const uint8_t* rows[2];
    RowsBehind behind;
    int count;
};

// The sums of the blocks with every pair of slabs of m0..m1, for finish(m, sums): those of the pair
// whose first row of activations is m.
template <class Finish>
inline void stored_sums(const Task& task, const StoredBlocks& blocks, int64_t m0, int64_t m1,
                        TileSums* sums, const Finish& finish) {
    const int64_t steps = steps_of(task.w.columns), num_pairs = block_pairs(m1 - m0);
    const int64_t at_once = num_pairs > 1 ? kStepsAtOnce : steps;
    RowsBehind behind = blocks.behind;
    behind.spread(steps * num_pairs);
    for (int64_t from = 0; from < steps; from += at_once) {
        const int64_t offset = from * kBytes;
        for (int64_t pair = 0; pair < num_pairs; ++pair) {
            const int64_t m = m0 + pair * 2 * kLanes;
            const ExpandedStep* turned = turned_steps(task, m) + from;
            const TileFactors factors{{blocks.rows[0] + offset, blocks.rows[1] + offset},
                                      task.w.code_stride,
                                      {turned, turned + steps},
                                      std::min(at_once, steps - from),
                                      from > 0};
            tile_products(blocks.count, m + kLanes < m1 ? 2 : 1, factors, sums[pair],
                          [&] { behind.ask(); });
            if (from + at_once >= steps) finish(m, sums[pair]);
        }
    }
}

// ---- a product

// Whether 16 results of a row from column n on are a cache line.
inline bool are_lines(const Task& task, int64_t n) {
    return (reinterpret_cast<uintptr_t>(task.out(0, n)) | static_cast<uintptr_t>(task.ldc * 4)) %
               64 == 0;
}

// The sums of a block of weights and a slab of activations, from row m on, to where they belong.
inline void put_stored(const Task& task, const StoredBlock& block, int64_t m,
                       const float (*sums)[kLanes]) {
    F tokens[kLanes];
    for (int r = 0; r < kLanes; ++r) tokens[r] = load(sums[r]);
    transpose(tokens);
    const __mmask16 wanted = block.wanted();
    const int64_t count = std::min<int64_t>(kLanes, task.num_tokens - m);
    if (task.add.factors) return add_results(task, m, count, block.n, wanted, tokens);
    if (task.x.streams_results && wanted == 0xFFFF && are_lines(task, block.n)) {
        for (int64_t i = 0; i < count; ++i) _mm512_stream_ps(task.out(m + i, block.n), tokens[i]);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        _mm512_mask_storeu_ps(task.out(m + i, block.n), wanted, tokens[i]);
    }
}

// Blocks by pairs, one of either half of the rows: two places are read faster than one, and their
// sums share the activations.
inline void stored_matmul(const Task& task, TileSums* sums) {
    const int64_t num_blocks = (task.n1 - task.n0 + kRegisterRows - 1) / kRegisterRows;
    const int64_t apart = (num_blocks + 1) / 2 * kRegisterRows;
    for_stored_slices(task, [&](int64_t m0, int64_t m1) {
        const NextRows next = m1 < task.num_tokens ? task.w.from(task.n0) : task.w.next;
        for (int64_t n = task.n0; n < task.n0 + apart; n += kRegisterRows) {
            const int count = n + apart < task.n1 ? 2 : 1;
            const StoredBlock place[2] = {stored_block(task, n),
                                          stored_block(task, count == 2 ? n + apart : n)};
            const bool is_last = n + kRegisterRows == task.n0 + apart;
            const int64_t behind = is_last ? task.n1 : n + kRegisterRows;
            const StoredBlocks blocks{
                {task.w.row(place[0].n), task.w.row(place[1].n)},
                {task, rows_behind(task, behind, next), rows_behind(task, behind + apart, next)},
                count};
            stored_sums(task, blocks, m0, m1, sums, [&](int64_t m, const TileSums& pair) {
                for (int s = 0; s < 2 && m + s * kLanes < m1; ++s) {
                    for (int b = 0; b < blocks.count; ++b) {
                        put_stored(task, place[b], m + s * kLanes, pair.of[b][s]);
                    }
                }
            });
        }
    });
    finish_streams(task.x.streams_results);
}

// ---- both products before the gate, and the gate

// bfloat16(silu(gate) * up) of a block of hidden columns and a slab of rows: pairs of columns are
// what a turned slab is made of, so nothing is turned.
template <bool is_streamed>
inline void store_turned(const float (*gate)[kLanes], const float (*up)[kLanes],
                         const StoredBlock& block, I* slab) {
    const auto gated = [&](int r) { return silu_times(load(gate[r]), load(up[r])); };
    for (int r = block.begin; r < block.end; r += 2) {
        put_pair<is_streamed>(slab + (block.n + r) / 2, pairs_of(gated(r), gated(r + 1)));
    }
}

// Two tasks of the same rows and tokens; rows lie in `hidden` as in x.
template <bool is_streamed>
inline void stored_gate_up(const Task& gate, const Task& up, const Activations& hidden,
                           TileSums* sums) {
    const int64_t slab_pairs = steps_of(hidden.columns) * kRegisterPairs;
    // W3 of an expert lies behind its W1.
    NextRows up_behind = up.w.next;
    if (up_behind.at) up_behind.at += up.w.rows * up.w.code_stride;
    for_stored_slices(gate, [&](int64_t m0, int64_t m1) {
        const bool is_last = m1 == gate.num_tokens;
        const NextRows next = is_last ? up.w.next : gate.w.from(gate.n0);
        const NextRows next_up = is_last ? up_behind : up.w.from(up.n0);
        for (int64_t n = gate.n0; n < gate.n1; n += kRegisterRows) {
            const StoredBlock block = stored_block(gate, n);
            const int64_t behind = std::min(n + kRegisterRows, gate.n1);
            const StoredBlocks blocks{
                {gate.w.row(block.n), up.w.row(block.n)},
                {gate, rows_behind(gate, behind, next), rows_behind(up, behind, next_up)},
                2};
            stored_sums(gate, blocks, m0, m1, sums, [&](int64_t m, const TileSums& pair) {
                auto* slab = static_cast<I*>(hidden.values) +
                             (gate.token(0) + m) / kLanes * slab_pairs;
                for (int s = 0; s < 2 && m + s * kLanes < m1; ++s, slab += slab_pairs) {
                    store_turned<is_streamed>(pair.of[0][s], pair.of[1][s], block, slab);
                }
            });
        }
    });
    finish_streams(is_streamed);
}

}  // namespace
}  // namespace m2::M2_ISA
