// Weights of any format as tiles of bfloat16 for the tile registers: 16 rows by 32 columns, a vector
// for every two columns, of which a lane has those of one row. Columns behind the last are 0.
#pragma once

#include "interleaved.h"
#include "tiles.h"

namespace m2::M2_ISA {
namespace {

// What a code of four bits is worth before zero point and scale, in every lane whose lowest bits are
// the code.
template <class Format>
inline F code_values() {
    alignas(64) static constexpr auto kValues = [] {
        struct { float of[16]; } values{};
        for (int code = 0; code < 16; ++code) values.of[code] = Format::nibble_value(code);
        return values;
    }();
    return load(kValues.of);
}
template <int shift>
inline F code_value(I packed, F values) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(packed, shift), values);
}

// Two columns, rounded where they have to be.
template <class Format>
inline I pairs_of_format(F even, F odd) {
    return Format::kIsBf16 ? exact_pairs_of(even, odd) : pairs_of(even, odd);
}

// ---- interleaved: a vector of codes has the same columns of 16 rows

template <class Format>
struct NibbleTiles {
    using Slabs = NibbleSlab<Format>;
    static void expand(const Task& task, int64_t n, int64_t k, I* to) {
        const Slab slab = slab_of(task.w, n, Format::kGroup);
        const F values = code_values<Format>();
        const int64_t end = std::min(kRegisterColumns, task.w.columns - k);
        for (int64_t column = 0; column < end; column += Format::kGroup) {
            const int64_t group = (k + column) / Format::kGroup;
            const F scale = Slabs::scale(slab, group);
            F zero_point = zero();
            if constexpr (Format::kZero < 0) zero_point = Slabs::zeros(slab, group, splat(1.0f));
            const uint8_t* from = Slabs::codes(slab, group);
            each<Slabs::kVectors>([&](auto v) {
                const I packed = load_bytes(from + v * kBytes);
                each<4>([&](auto p) {
                    F even = code_value<8 * p>(packed, values);
                    F odd = code_value<8 * p + 4>(packed, values);
                    if constexpr (Format::kZero < 0) {
                        even = _mm512_sub_ps(even, zero_point);
                        odd = _mm512_sub_ps(odd, zero_point);
                    }
                    to[column / 2 + v * 4 + p] =
                        pairs_of_format<Format>(mul(even, scale), mul(odd, scale));
                });
            });
        }
        for (int64_t pair = end / 2; pair < kRegisterPairs; ++pair) to[pair] = no_integers();
    }
};

template <int b>
inline F signed_byte(I bytes) {
    return integers_to_floats(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * b), 24));
}

struct ByteTiles {
    static void expand(const Task& task, int64_t n, int64_t k, I* to) {
        const Slab slab = slab_of(task.w, n, ByteSlab::kGroup);
        const int64_t end = std::min(kRegisterColumns, task.w.columns - k);
        for (int64_t column = 0; column < end; column += 4) {
            const I raw = load_bytes(slab.codes + (k + column) * kLanes);
            to[column / 2] = exact_pairs_of(signed_byte<0>(raw), signed_byte<1>(raw));
            to[column / 2 + 1] = exact_pairs_of(signed_byte<2>(raw), signed_byte<3>(raw));
        }
        for (int64_t pair = end / 2; pair < kRegisterPairs; ++pair) to[pair] = no_integers();
    }
};

// ---- as stored: a row is turned into a vector, 16 of them are transposed

// `bytes` codes for a whole tile's columns; those behind the last are 0.
template <int bytes>
inline const uint8_t* codes_of(const uint8_t* from, int64_t there, uint8_t (&buffer)[bytes]) {
    if (there >= bytes) return from;
    std::memset(buffer, 0, bytes);
    std::memcpy(buffer, from, static_cast<size_t>(there));
    return buffer;
}

template <class Format>
struct NibbleRow {
    static constexpr int kRowBytes = kRegisterColumns / 2;
    static I expand(const Task& task, int64_t n, int64_t k, const uint8_t* codes) {
        constexpr int kLog2LanesPerGroup = Format::kGroup == 16 ? 3 : 4;
        const Row row = row_of(task.w, n, Format::kGroup);
        const int64_t group = k / Format::kGroup, all = task.w.columns / Format::kGroup;
        const int count = static_cast<int>(std::min<int64_t>(kRegisterColumns / Format::kGroup,
                                                             all - group));
        const I lanes = group_of_lane(0, kLog2LanesPerGroup);
        const F scale = permute(Format::scales(row, group, count), lanes);
        const F values = code_values<Format>();
        const I bytes = bytes_to_int32(codes);
        F even = code_value<0>(bytes, values), odd = code_value<4>(bytes, values);
        if constexpr (Format::kZero < 0) {
            const F zeros = permute(Format::zeros(row, group, count), lanes);
            even = _mm512_sub_ps(even, zeros);
            odd = _mm512_sub_ps(odd, zeros);
        }
        return pairs_of_format<Format>(mul(even, scale), mul(odd, scale));
    }
};
struct Bf16Row {
    static constexpr int kRowBytes = kRegisterColumns * 2;
    static I expand(const Task&, int64_t, int64_t, const uint8_t* codes) {
        return load_bytes(codes);
    }
};
struct F16Row {
    static constexpr int kRowBytes = kRegisterColumns * 2;
    static I expand(const Task&, int64_t, int64_t, const uint8_t* codes) {
        const I raw = load_bytes(codes);
        return row_of_floats(f16_half<0>(raw), f16_half<1>(raw));
    }
};
struct Fp8Row {
    static constexpr int kRowBytes = kRegisterColumns;
    static I expand(const Task& task, int64_t n, int64_t k, const uint8_t* codes) {
        const F scale = splat(block_scale(task.w, n)[k / task.w.group]);
        return row_of_floats(mul(e4m3_floats(codes), scale),
                             mul(e4m3_floats(codes + kLanes), scale));
    }
};
struct Int8Row {
    static constexpr int kRowBytes = kRegisterColumns;
    static I expand(const Task&, int64_t, int64_t, const uint8_t* codes) {
        const auto half = [&](int at) {
            const auto* from = reinterpret_cast<const __m128i*>(codes + at);
            return integers_to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
        };
        return row_of_floats(half(0), half(kLanes));
    }
};

template <class RowOf>
struct RowTiles {
    static void expand(const Task& task, int64_t n, int64_t k, I* to) {
        constexpr int kRowBytes = RowOf::kRowBytes;
        const int64_t offset = k * kRowBytes / kRegisterColumns;
        const int64_t there = task.w.code_stride - offset;
        F rows[kLanes];
        for (int r = 0; r < kLanes; ++r) {
            const int64_t row = std::min(n + r, task.n1 - 1);  // what lies behind is not kept
            uint8_t buffer[kRowBytes];
            const uint8_t* from = task.w.codes + row * task.w.code_stride + offset;
            rows[r] = as_float(RowOf::expand(task, row, k, codes_of(from, there, buffer)));
        }
        transpose(rows);
        for (int p = 0; p < kRegisterPairs; ++p) to[p] = as_bits(rows[p]);
    }
};

// What a finished sum is multiplied with.
inline F tile_factor(const Task& task, int64_t n) {
    if (task.w.format == M2_NVFP4) return splat(task.w.global_scale);
    if (task.w.format != M2_INT8) return splat(1.0f);
    alignas(64) float scales[kLanes];
    for (int r = 0; r < kLanes; ++r) {
        scales[r] = scale_of_row(task.w, std::min(n + r, task.n1 - 1));
    }
    return load(scales);
}

}  // namespace
}  // namespace m2::M2_ISA
