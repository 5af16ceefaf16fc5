// The product of many rows: a panel of weights is expanded once, column after column, then
// kPanelTokens rows of activations at a time meet it in registers. A lane is a row of weights and
// what an activation has in a column is one broadcast: nothing is summed across lanes, a sum does not
// depend on what lies beside it, and fewer bytes come from the caches than with rows side by side.
#pragma once

#include <algorithm>

#include "spans.h"
#include "task.h"
#include "tiles_ahead.h"

namespace m2::M2_ISA {
namespace {

constexpr int kPanelVectors = 2;  // of TwoSums
constexpr int64_t kPanelRows = kPanelVectors * kLanes;
constexpr int64_t kPanelColumns = 32 * kLanes;  // whole superblocks of scales
// Of those, what the first cache keeps while rows of activations come by.
constexpr int64_t kPanelPart = 256;
constexpr int64_t kPanelBlocks = (kTokensAtOnce + kPanelTokens - 1) / kPanelTokens;
static_assert(kPanelTokens <= kLanes && kPanelColumns % kPanelPart == 0);
using PanelPasses = Passes<kPanelTokens, kTokensAtOnce>;

struct Panel {
    alignas(64) float values[kPanelColumns][kPanelRows];
    // Rows of weights on their way there, one after the other.
    alignas(64) float rows[kLanes][kPanelColumns];
    // The activations in the order they are read: kPanelTokens rows side by side. Where they come from
    // rows lie powers of two apart, in the same few sets of the first cache.
    alignas(64) float tokens[kPanelBlocks][kPanelColumns][kLanes];
};

// Rows that `expand` writes one by one become columns of the panel, from its row `first` on; those
// that are not there are 0. Returns the columns, padding included.
template <class Expand>
inline int64_t turn_rows(const Expand& expand, int64_t n, int64_t rows, int64_t k0, int64_t k1,
                         int64_t first, Panel& panel) {
    int64_t columns = 0;
    for (int64_t r = 0; r < rows; ++r) columns = expand(n + r, k0, k1, panel.rows[r]);
    for (int64_t r = rows; r < kLanes; ++r) std::memset(panel.rows[r], 0, columns * sizeof(float));
    for (int64_t k = 0; k < columns; k += kLanes) {
        F square[kLanes];
        each<kLanes>([&](auto r) { square[r] = load(panel.rows[r] + k); });
        transpose(square);
        each<kLanes>([&](auto i) { store(panel.values[k + i] + first, square[i]); });
    }
    return columns;
}

// The same for formats whose codes unfold within 32 bits, without a scale: those are turned about as
// they are stored.
template <class Format>
inline int64_t turn_codes(const Matrix& w, int64_t n, int64_t rows, int64_t k0, int64_t k1,
                          int64_t first, Panel& panel) {
    constexpr int64_t kSize = kBytesPerColumn<Format>, kUnit = Format::kVectors * kLanes;
    for (int64_t k = k0; k < k1; k += kUnit) {
        F square[kLanes];
        each<kLanes>([&](auto r) {
            square[r] = r < rows ? as_float(load_unit(w.row(n + r) + k * kSize, (k1 - k) * kSize))
                                 : zero();
        });
        transpose(square);
        each<kLanes>([&](auto i) {
            unfold<Format>(as_bits(square[i]), [&](F value, auto v) {
                store(panel.values[k - k0 + v * kLanes + i] + first, value);
            });
        });
    }
    return (k1 - k0 + kUnit - 1) / kUnit * kUnit;
}

// Columns k0.. of the tokens of every pass.
inline void gather_tokens(const Task& task, const PanelPasses& passes, int64_t k0, int64_t columns,
                          Panel& panel) {
    for (int64_t i = 0; i < passes.count; ++i) {
        auto* to = panel.tokens[i];
        const float* from[kLanes];
        for (int64_t t = 0; t < kLanes; ++t) {  // a token that is not there is another again
            const int64_t token = task.token(std::min(passes.starts[i] + t, passes.starts[i + 1] - 1));
            from[t] = static_cast<const float*>(task.x.values) + token * task.x.padded + k0;
        }
        for (int64_t k = 0; k < columns; k += kLanes) {
            F square[kLanes];
            each<kLanes>([&](auto t) { square[t] = load(from[t] + k); });
            transpose(square);
            each<kLanes>([&](auto i) { store(to[k + i], square[i]); });
        }
    }
}

// The panel times T rows of activations: sums[t * kPanelVectors + v].
template <int T>
inline void panel_block(const float (*w)[kPanelRows], const float (*x)[kLanes], int64_t columns,
                        F* sums) {
    TwoSums acc[T];
    each<T>([&](auto t) { acc[t] = {zero(), zero()}; });
    const float *from = w[0], *values = x[0];
    // Few instructions beside the products: where another thread keeps the processor's core busy, they
    // are what it has too few of.
#pragma GCC unroll kPanelUnroll
    for (int64_t k = 0; k < columns; ++k, from += kPanelRows, values += kLanes) {
        const F first = load(from), second = load(from + kLanes);
        each<T>([&](auto t) { acc[t] = add_products(acc[t], first, second, values[t]); });
    }
    each<T>([&](auto t) {
        sums[t * kPanelVectors] = acc[t].a;
        sums[t * kPanelVectors + 1] = acc[t].b;
    });
}

// `rows` sums of a row of activations, times their factors, to c: the first columns', or added.
inline void put_panel_sums(const F* sums, const float* factor, int64_t rows, bool adds, float* c) {
    if (rows == kPanelRows) {
        return each<kPanelVectors>([&](auto v) {
            float* to = c + v * kLanes;
            const F of_rows = load(factor + v * kLanes);
            store(to, adds ? fma(sums[v], of_rows, load(to)) : mul(sums[v], of_rows));
        });
    }
    float buffer[kPanelRows];
    each<kPanelVectors>([&](auto v) { store(buffer + v * kLanes, sums[v]); });
    for (int64_t r = 0; r < rows; ++r) c[r] = (adds ? c[r] : 0.0f) + buffer[r] * factor[r];
}

// Where a panel is in its matrix, and what its sums are multiplied with.
struct PanelPlace {
    int64_t n, rows, k0;
    alignas(64) float factor[kPanelRows];
};

// T tokens from m on: columns from..end.
template <int T>
inline void panel_tokens(const Task& task, const Panel& panel, const PanelPlace& place,
                         int64_t from, int64_t end, int64_t m, const float (*x)[kLanes]) {
    F sums[T * kPanelVectors];
    panel_block<T>(panel.values + from, x + from, end - from, sums);
    each<T>([&](auto t) {
        put_panel_sums(sums + t * kPanelVectors, place.factor, place.rows, place.k0 + from > 0,
                       task.out(m + t, place.n));
    });
}

inline void panel_part(const Task& task, const Panel& panel, const PanelPlace& place, int64_t from,
                       int64_t end, const PanelPasses& passes, int64_t lines_ahead, Ahead& ahead) {
    passes.each_pass([&](int64_t pass, int64_t m, auto tokens) {
        ahead.ask(lines_ahead);
        panel_tokens<tokens>(task, panel, place, from, end, m, panel.tokens[pass]);
    });
}

// The codes of the panel after this one: of the next rows, else of the next columns, else of what the
// thread multiplies next.
inline Ahead behind_panel(const Task& task, const PanelPlace& place, int64_t k0, int64_t k1,
                          int64_t m1) {
    const Matrix& w = task.w;
    const int64_t n = place.n + place.rows;
    const auto at = [&](int64_t k) { return k * w.code_stride / w.columns; };
    Ahead ahead;
    const auto add = [&](const uint8_t* row, int64_t left, int64_t from, int64_t end) {
        ahead.add(row + at(from), std::min(kPanelRows, left), at(end) - at(from), w.code_stride);
    };
    if (n < task.n1) {
        add(w.row(n), task.n1 - n, k0, k1);
    } else if (k1 < w.columns) {
        add(w.row(task.n0), task.n1 - task.n0, k1, std::min(w.columns, k1 + kPanelColumns));
    } else if (w.next.at && m1 == task.num_tokens) {
        add(w.next.at, task.n1 - task.n0, 0, std::min(w.columns, kPanelColumns));
    }
    return ahead;
}

// Every panel of the task against tokens m0..m1. turn(n, rows, k0, k1, first, panel) is one of the
// above.
template <class Turn>
void panels_of_slice(const Task& task, const Turn& turn, int64_t m0, int64_t m1) {
    auto& panel = *static_cast<Panel*>(task.scratch);
    PanelPlace place{};
    const PanelPasses passes(m0, m1);
    for (int64_t k0 = 0; k0 < task.w.columns; k0 += kPanelColumns) {
        const int64_t k1 = std::min(task.w.columns, k0 + kPanelColumns);
        place.k0 = k0;
        gather_tokens(task, passes, k0, std::min(kPanelColumns, task.x.padded - k0), panel);
        for (place.n = task.n0; place.n < task.n1; place.n += kPanelRows) {
            place.rows = std::min(kPanelRows, task.n1 - place.n);
            for (int64_t r = 0; r < place.rows; ++r) {
                place.factor[r] = factor_of_row(task, place.n + r);
            }
            int64_t columns = 0;
            for (int64_t first = 0; first < place.rows; first += kLanes) {
                const int64_t rows = std::min<int64_t>(place.rows - first, kLanes);
                columns = turn(place.n + first, rows, k0, k1, first, panel);
            }
            Ahead ahead = behind_panel(task, place, k0, k1, m1);
            const int64_t steps = (columns + kPanelPart - 1) / kPanelPart * passes.count;
            const int64_t lines = ahead.lines_a_step(steps);
            for (int64_t from = 0; from < columns; from += kPanelPart) {
                const int64_t end = std::min(columns, from + kPanelPart);
                panel_part(task, panel, place, from, end, passes, lines, ahead);
            }
        }
    }
}

template <class Turn>
void panels(const Task& task, const Turn& turn) {
    for_slices(task, [&](int64_t m0, int64_t m1) { panels_of_slice(task, turn, m0, m1); });
}
template <class Format>
void panels_of_codes(const Task& task) {
    panels(task, [&](int64_t n, int64_t rows, int64_t k0, int64_t k1, int64_t first, Panel& panel) {
        return turn_codes<Format>(task.w, n, rows, k0, k1, first, panel);
    });
}

}  // namespace
}  // namespace m2::M2_ISA
