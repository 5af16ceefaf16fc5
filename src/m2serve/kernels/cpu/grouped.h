// Four-bit formats as they are stored against float activations: a scale for every 16 or 32 columns.
//
// A unit is 2 * kBytes columns: one vector of packed codes. Its low nibbles are the even columns,
// its high nibbles the odd ones, and lane i holds columns 8i..8i+7 of the unit, so that all vectors
// of a unit share one map from lanes to groups and one multiplication by the scale serves them all.
// A superblock is kLanes groups: their scales are one vector.
#pragma once

#include <cstring>

#include "each.h"
#include "unit.h"
#include "types.h"

namespace m2::M2_ISA {
namespace {

constexpr int8_t kE2m1Twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int8_t kE2m1Shifted[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
constexpr int8_t kLess8[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

// Entries of a row, each for some columns; `end` is that of the whole matrix, up to which one may
// read.
struct Entries {
    const uint8_t* row;
    const uint8_t* end;
};
struct Row {
    const uint8_t* codes;
    Entries scale, zero_point;
    int log2_groups_per_scale;  // activation groups that share one scale of the weight
};

// Entries of `size` bytes for `count` groups from `first`; readable for kLanes of them. Behind the
// count they are the next row's: finite, as was checked when they were loaded, and multiplied with
// activations that are padded with zeros.
template <int size>
inline const uint8_t* entries(const Entries& of, int64_t first, int count, int shift,
                              uint8_t* buffer) {
    const uint8_t* start = of.row + (first >> shift) * size;
    if (start + kLanes * size <= of.end) return start;
    std::memset(buffer, 0, kLanes * size);
    const int num = ((count - 1) >> shift) + 1;
    for (int i = 0; i < num * size; ++i) buffer[i] = start[i];
    return buffer;
}
inline F spread(F value, int shift) {
    return shift == 0 ? value : permute(value, group_of_lane(0, shift));
}

// kLanes values of a floating type.
inline F lane_floats(int32_t type, const void* from) {
    if (type == M2_F32) return load(static_cast<const float*>(from));
    const auto* halves = static_cast<const uint16_t*>(from);
    return type == M2_F16 ? f16_floats(halves) : bf16_floats(halves);
}

// A format says what its codes and scales are worth. kIsBf16: code times scale has no more than eight
// significant bits, so that it is exact in bfloat16. kSlabFactor times slab_scales are lane_scales.
// kZero and kInt8Zero are the code of zero, as `codes` and as `unsigned_codes` have it; -1: every group
// has its own.
struct Nvfp4 {
    static constexpr int kGroup = 16;
    static constexpr int kScaleBytes = 1;
    static constexpr int kMostCode = 24;  // unsigned
    static constexpr bool kIsBf16 = true;
    static constexpr float kZero = 0;
    static constexpr int kInt8Zero = 12;
    static F lane_scales(const uint8_t* from) { return e4m3_floats(from); }
    static F slab_scales(const uint8_t* from) { return small_e4m3_floats(from); }
    static constexpr float kSlabFactor = 0x1p8f;
    static F scales(const Row& row, int64_t first, int count) {
        uint8_t buffer[kLanes];
        return lane_scales(entries<1>(row.scale, first, count, 0, buffer));
    }
    static F zeros(const Row&, int64_t, int) { return splat(0); }
    static constexpr float nibble_value(int code) { return 0.5f * kE2m1Twice[code]; }
    static I codes(I nibbles) { return look_up(table16(kE2m1Twice), nibbles); }
    static I unsigned_codes(I nibbles) { return look_up(table16(kE2m1Shifted), nibbles); }
};

struct Mxfp4 : Nvfp4 {
    static constexpr int kGroup = 32;
    static F lane_scales(const uint8_t* from) { return e8m0_floats(from); }
    static F slab_scales(const uint8_t* from) { return lane_scales(from); }
    static constexpr float kSlabFactor = 1;
    static F scales(const Row& row, int64_t first, int count) {
        uint8_t buffer[kLanes];
        return lane_scales(entries<1>(row.scale, first, count, 0, buffer));
    }
};

// kind: an m2_format of the scales. asymmetric: a zero point for every group.
template <int kind, bool asymmetric>
struct Int4 {
    static constexpr int kGroup = 32;
    static constexpr int kMostCode = 15;
    static constexpr bool kIsBf16 = false;
    static constexpr int kScaleBytes = kind == M2_F32 ? 4 : 2;
    static constexpr float kZero = asymmetric ? -1 : 0;
    static constexpr int kInt8Zero = asymmetric ? -1 : 8;
    static F lane_scales(const uint8_t* from) { return lane_floats(kind, from); }
    static F slab_scales(const uint8_t* from) { return lane_scales(from); }
    static constexpr float kSlabFactor = 1;
    static F scales(const Row& row, int64_t first, int count) {
        alignas(64) uint8_t buffer[kLanes * 4];
        const int shift = row.log2_groups_per_scale;
        return spread(lane_scales(entries<kScaleBytes>(row.scale, first, count, shift, buffer)),
                      shift);
    }
    static F zeros(const Row& row, int64_t first, int count) {
        uint8_t buffer[kLanes];
        const int shift = row.log2_groups_per_scale;
        return spread(bytes_to_floats(entries<1>(row.zero_point, first, count, shift, buffer)),
                      shift);
    }
    static constexpr float nibble_value(int code) { return asymmetric ? code : kLess8[code]; }
    static I codes(I nibbles) { return asymmetric ? nibbles : look_up(table16(kLess8), nibbles); }
    static I unsigned_codes(I nibbles) { return nibbles; }
};

// of types.h; `offset` is what `sum` holds where all codes of zero are the same.
struct Int8Activations {
    const int8_t* values;
    const float* scale;
    const float* sum;
    const int32_t* offset() const { return reinterpret_cast<const int32_t*>(sum); }
};
struct FloatActivations {
    const float* values;
    const float* sum;
};

template <class Format>
constexpr int kUnitsPerSuperblock = Format::kGroup / 8;

template <class Format>
constexpr int kLog2LanesPerGroup = Format::kGroup == 16 ? 1 : 2;

template <class Format>
inline F scaled_zeros(const Row& row, int64_t first, int count, F scale) {
    return mul(scale, Format::kZero < 0 ? Format::zeros(row, first, count) : splat(Format::kZero));
}

template <int v>
inline F code_float(I low, I high) {
    return byte_to_float<v & 3>(v < 4 ? low : high);
}

template <class Format, int M, bool tail>
inline void float_superblock(const Row& row, int64_t group, int count, const FloatActivations* x,
                             F* acc) {
    const F plain = Format::scales(row, group, count);
    if constexpr (Format::kZero != 0) {
        const F zeros = scaled_zeros<Format>(row, group, count, plain);
        each<M>([&](auto m) { acc[m] = fnma(zeros, load(x[m].sum + group), acc[m]); });
    }
    const F scale = arrange_groups<kLog2LanesPerGroup<Format>>(
        mul(plain, splat(0x1p-24f)));  // of byte_to_float
    const int64_t column = group * Format::kGroup;
    const uint8_t* codes = row.codes + column / 2;
    const int64_t bytes = count * Format::kGroup / 2;
    // Few rows: two sums, so that a multiplication does not wait for the one before it.
    constexpr int kSums = M <= 2 ? 2 : 1;
    each<kUnitsPerSuperblock<Format>>([&](auto unit) {
        if (tail && unit * kBytes >= bytes) return;
        if (M <= 2) __builtin_prefetch(codes + unit * kBytes + 2048);
        const I packed = tail ? load_unit(codes + unit * kBytes, bytes - unit * kBytes)
                              : load_bytes(codes + unit * kBytes);
        const I low = Format::codes(low_nibbles(packed));
        const I high = Format::codes(high_nibbles(packed));
        const int64_t at = column + unit * 2 * kBytes;
        F dot[M * kSums];
        each<8>([&](auto v) {
            const F w = code_float<v>(low, high);
            each<M>([&](auto m) {
                const F value = load(x[m].values + at + v * kLanes);
                F& one = dot[m * kSums + v % kSums];
                one = v < kSums ? mul(w, value) : fma(w, value, one);
            });
        });
        const F spread_scale = spread_groups<kLog2LanesPerGroup<Format>, unit>(scale);
        each<M>([&](auto m) {
            const F both = kSums == 1 ? dot[m] : add(dot[m * kSums], dot[m * kSums + kSums - 1]);
            acc[m] = fma(both, spread_scale, acc[m]);
        });
    });
}

// Columns k0..k1 of one row against M rows of activations; k0 is a multiple of kPad.
template <class Format, int M>
inline void float_row(const Row& row, int64_t k0, int64_t k1, const FloatActivations* x, F* acc) {
    int64_t group = k0 / Format::kGroup;
    const int64_t end = k1 / Format::kGroup;
    for (; group + kLanes <= end; group += kLanes) {
        float_superblock<Format, M, false>(row, group, kLanes, x, acc);
    }
    if (group < end) {
        float_superblock<Format, M, true>(row, group, static_cast<int>(end - group), x, acc);
    }
}

// Columns k0..k1 as scaled floats in the order of the activations; returns how many, padding
// included.
template <class Format>
inline int64_t expand_row(const Row& row, int64_t k0, int64_t k1, float* to) {
    int64_t written = 0;
    for (int64_t group = k0 / Format::kGroup; group < k1 / Format::kGroup; group += kLanes) {
        const int64_t left = k1 / Format::kGroup - group;
        const int count = left < kLanes ? static_cast<int>(left) : kLanes;
        const F plain = Format::scales(row, group, count);
        const F zeros = scaled_zeros<Format>(row, group, count, plain);
        const F scale =
            arrange_groups<kLog2LanesPerGroup<Format>>(mul(plain, splat(0x1p-24f)));
        const F offset = arrange_groups<kLog2LanesPerGroup<Format>>(zeros);
        const uint8_t* codes = row.codes + group * Format::kGroup / 2;
        const int64_t bytes = count * Format::kGroup / 2;
        each<kUnitsPerSuperblock<Format>>([&](auto unit) {
            if (unit * kBytes >= bytes) return;
            const I packed = load_unit(codes + unit * kBytes, bytes - unit * kBytes);
            const I low = Format::codes(low_nibbles(packed));
            const I high = Format::codes(high_nibbles(packed));
            const F s = spread_groups<kLog2LanesPerGroup<Format>, unit>(scale);
            const F z = spread_groups<kLog2LanesPerGroup<Format>, unit>(offset);
            const auto put = [&](F w, int v) {
                const F value = Format::kZero == 0 ? mul(w, s) : fma(w, s, mul(z, splat(-1.0f)));
                store(to + written + v * kLanes, value);
            };
            each<8>([&](auto v) { put(code_float<v>(low, high), v); });
            written += 2 * kBytes;
        });
    }
    return written;
}

}  // namespace
}  // namespace m2::M2_ISA
