// Int8 activations against integer codes of four or eight bits, kLanes rows of weights at a time.
//
// interleave.h has put the codes so that a vector holds the same columns of kLanes rows, four bytes
// of each: a lane is a row, nothing is summed across lanes, and what an activation has in those
// columns is one broadcast. Within a group the sums are exact; its two scales, the weight's and the
// activation's, are applied to them in float32.
#pragma once

#include "task.h"

namespace m2::M2_ISA {
namespace {

struct Slab {
    const uint8_t* codes;
    const uint8_t* scale;
    const uint8_t* zero_point;
    int log2_groups_per_scale;  // activation groups that share one scale of the weight
};

inline Slab slab_of(const Matrix& w, int64_t n, int x_group) {
    const Row row = row_of(w, n, x_group);
    return {row.codes, row.scale.row, row.zero_point.row, row.log2_groups_per_scale};
}

// The four bytes of an activation that meet a step of weights.
inline I quad(const int8_t* values) {
    int32_t bits;
    std::memcpy(&bits, values, 4);
    return splat_bits(bits);
}

// Four bits: a vector is two steps, of the even and the odd columns of eight.
template <class Format>
struct NibbleSlab {
    static constexpr int kGroup = Format::kGroup;
    static constexpr int kVectors = kGroup / 8;
    static constexpr int kPlaces = 2;  // read by turns
    // So many vectors' sums of products fit 16 bits.
    static constexpr int kSafe = 32767 / (4 * 127 * Format::kMostCode);
    static constexpr int kAtOnce = kQuadsAreWide || kVectors <= kSafe ? kVectors : kVectors / 2;
    static_assert(kQuadsAreWide || kAtOnce <= kSafe);

    static const uint8_t* codes(const Slab& slab, int64_t group) {
        return slab.codes + group * kVectors * kBytes;
    }
    static F scale(const Slab& slab, int64_t group) {
        const int64_t at = group >> slab.log2_groups_per_scale;
        return Format::slab_scales(slab.scale + at * kLanes * Format::kScaleBytes);
    }
    // Whether one number takes away from a sum of codes what it has too much.
    static constexpr bool kHasOffset = Format::kInt8Zero >= 0;
    // Whether a group's first products have room for it.
    static constexpr bool kBeginsWithOffset = kQuadsAreWide && kHasOffset;
    // What a sum of codes has too much, times the scale, where every group has its own.
    static F zeros(const Slab& slab, int64_t group, F scale) {
        const int64_t at = group >> slab.log2_groups_per_scale;
        return mul(scale, bytes_to_floats(slab.zero_point + at * kLanes));
    }

    template <int T, int kChains>
    static void group(const Slab& slab, int64_t group, int64_t, const Int8Activations* x,
                      const uint8_t* ahead, F* sums) {
        const uint8_t* from = codes(slab, group);
        I dots[T], whole[T];
        if constexpr (kBeginsWithOffset) {
            each<T>([&](auto t) { dots[t] = splat_bits(x[t].offset()[group]); });
        }
        each<kVectors>([&](auto v) {
            constexpr bool begins = v % kAtOnce == 0 && !kBeginsWithOffset;
            const int64_t at = (group * kVectors + v) * kBytes;
            if (at % 64 == 0) __builtin_prefetch(ahead + at);
            const I packed = load_bytes(from + v * kBytes);
            const I even = Format::unsigned_codes(low_nibbles(packed));
            const I odd = Format::unsigned_codes(high_nibbles(packed));
            each<T>([&](auto t) {
                const int8_t* q = x[t].values + group * kGroup + 8 * v;
                dots[t] = begins ? quads_of(even, quad(q)) : add_quads(dots[t], even, quad(q));
                dots[t] = add_quads(dots[t], odd, quad(q + 4));
                if (v % kAtOnce != kAtOnce - 1) return;
                const I done = finish_quads(dots[t]);
                whole[t] = v < kAtOnce ? done : add_integers(whole[t], done);
            });
        });
        if constexpr (kHasOffset && !kBeginsWithOffset) {
            each<T>([&](auto t) {
                whole[t] = add_integers(whole[t], splat_bits(x[t].offset()[group]));
            });
        }
        const F one = scale(slab, group);
        if constexpr (!kHasOffset) {
            const F zero = zeros(slab, group, one);
            each<T>([&](auto t) {
                F& last = sums[t * kChains + kChains - 1];
                last = fnma(zero, splat(x[t].sum[group]), last);
            });
        }
        each<T>([&](auto t) {
            F& first = sums[t * kChains];
            first = fma(integers_to_floats(whole[t]), mul(one, splat(x[t].scale[group])), first);
        });
    }
    static F factor(const Task& task, int64_t n) {
        return splat(factor_of_row(task, n) * Format::kSlabFactor);
    }
};

// Eight bits: a vector is one step. A row has one scale, which is its factor.
struct ByteSlab {
    static constexpr int kGroup = 32;
    static constexpr int kVectors = kGroup / 4;
    static constexpr int kPlaces = 4;
    static constexpr bool kHasOffset = true;

    template <int T>
    static void step(const uint8_t* from, const uint8_t* ahead, const int8_t* const* q,
                     int64_t column, I* dots) {
        __builtin_prefetch(ahead);
        const I w = load_bytes(from);
        each<T>([&](auto t) { dots[t] = add_int8(dots[t], w, quad(q[t] + column)); });
    }
    template <int T, int kChains>
    static void group(const Slab& slab, int64_t group, int64_t columns, const Int8Activations* x,
                      const uint8_t* ahead, F* sums) {
        const int64_t first_byte = group * kVectors * kBytes;
        const int8_t* q[T];
        I dots[T];
        each<T>([&](auto t) {
            q[t] = x[t].values + group * kGroup;
            dots[t] = kInt8Zero == 0 ? no_integers() : splat_bits(x[t].offset()[group]);
        });
        const int64_t left = columns - group * kGroup;
        const int64_t end = left < kGroup ? left : kGroup;
        for (int64_t k = 0; k < end; k += 4) {
            const int64_t at = first_byte + k * kLanes;
            step<T>(slab.codes + at, ahead + at, q, k, dots);
        }
        each<T>([&](auto t) {
            F& first = sums[t * kChains];
            first = fma(integers_to_floats(dots[t]), splat(x[t].scale[group]), first);
        });
    }
    static F factor(const Task& task, int64_t n) {
        const int64_t size = task.w.scale_type == M2_F32 ? 4 : 2;
        return lane_floats(task.w.scale_type, task.w.scale + n * size);
    }
};

// Codes are asked for so many bytes before they are read.
constexpr int64_t kCodesAhead = 2048;

// Rows n to `end`, of which slab after slab is read, then what lies at `next`.
struct Strip {
    int64_t n, end;
    const uint8_t* next;

    int64_t bytes(const Matrix& w) const { return (end - n) * w.code_stride; }
};

// T rows of activations from m0 on against the first slabs of S strips, which are equally long.
template <class Slabs, int T, int S>
inline void slab_tokens(const Task& task, const Strip* strips, int64_t m0) {
    // One row and zero points: two sums, so that an addition does not wait for the one before it.
    constexpr int kChains = T == 1 && !Slabs::kHasOffset ? 2 : 1;
    Int8Activations x[T];
    Slab slab[S];
    F sums[S * T * kChains];
    each<T>([&](auto t) { x[t] = int8_activations(task.x, task.token(m0 + t)); });
    each<S>([&](auto s) { slab[s] = slab_of(task.w, strips[s].n, Slabs::kGroup); });
    each<S * T * kChains>([&](auto i) { sums[i] = zero(); });
    const int64_t groups = (task.w.columns + Slabs::kGroup - 1) / Slabs::kGroup;
    constexpr int64_t kGroupBytes = Slabs::kVectors * kBytes;
    const int64_t left = strips[0].bytes(task.w);
    const int64_t last = std::max<int64_t>(0, (left - kCodesAhead) / kGroupBytes);
    for (int64_t group = 0; group < groups;) {
        const bool is_last = group >= last;
        const uint8_t* ahead[S];
        each<S>([&](auto s) {
            ahead[s] = is_last ? strips[s].next - left : slab[s].codes;
            ahead[s] += kCodesAhead;
        });
        for (const int64_t end = is_last ? groups : std::min(last, groups); group < end; ++group) {
            each<S>([&](auto s) {
                Slabs::template group<T, kChains>(slab[s], group, task.w.columns, x, ahead[s],
                                                  sums + s * T * kChains);
            });
        }
    }
    each<S>([&](auto s) {
        const F factor = Slabs::factor(task, strips[s].n);
        each<T>([&](auto t) {
            const F* sum = sums + (s * T + t) * kChains;
            const F total = kChains == 1 ? sum[0] : add(sum[0], sum[kChains - 1]);
            store(task.out(m0 + t, strips[s].n), mul(total, factor));
        });
    });
}

// All rows of activations against S slabs, so that each comes from memory once.
template <class Slabs, int S>
inline void slab_block(const Task& task, const Strip* strips) {
    int64_t m = 0;
    for (; m + kSlabTokens <= task.num_tokens; m += kSlabTokens) {
        slab_tokens<Slabs, kSlabTokens, S>(task, strips, m);
    }
    each<kSlabTokens - 1>([&](auto less) {
        constexpr int left = less + 1;
        if (task.num_tokens - m == left) slab_tokens<Slabs, left, S>(task, strips, m);
    });
}

template <class Slabs, int S>
inline void slab_rows(const Task& task) {
    const int64_t apart = (task.n1 - task.n0) / kLanes / S * kLanes;
    const uint8_t* const next = task.w.next.at ? task.w.next.at : task.w.row(task.n1);
    Strip strips[S];
    each<S>([&](auto s) {
        const int64_t n = task.n0 + s * apart;
        strips[s] = {n, n + apart, next + s * apart * task.w.code_stride};
    });
    for (int64_t i = 0; i < apart; i += kLanes) {
        slab_block<Slabs, S>(task, strips);
        each<S>([&](auto s) { strips[s].n += kLanes; });
    }
    for (Strip rest{task.n0 + S * apart, task.n1, next}; rest.n < task.n1; rest.n += kLanes) {
        slab_block<Slabs, 1>(task, &rest);
    }
}

template <class Slabs>
void slabs(const Task& task) {
    // With more rows of activations the products take longer than the weights.
    constexpr int64_t kMemoryTokens = 4;
    task.num_tokens <= kMemoryTokens ? slab_rows<Slabs, Slabs::kPlaces>(task)
                                     : slab_rows<Slabs, 1>(task);
}

}  // namespace
}  // namespace m2::M2_ISA
