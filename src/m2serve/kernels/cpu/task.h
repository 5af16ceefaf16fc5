// One product of a part of a matrix, and where its rows, scales and activations lie.
#pragma once

#include "spans.h"

namespace m2::M2_ISA {
namespace {

struct Task {
    const Matrix& w;
    int64_t n0, n1;
    const Activations& x;
    const int32_t* tokens;
    int64_t num_tokens;
    float* c;
    int64_t ldc;
    void* scratch;
    AddTo add = {};  // instead of c where it has factors

    int64_t token(int64_t m) const { return tokens ? tokens[m] : m; }
    float* out(int64_t m, int64_t n) const { return c + m * ldc + (n - n0); }
};

inline float scale_of_row(const Matrix& w, int64_t n) {
    if (w.scale_type == M2_F32) return reinterpret_cast<const float*>(w.scale)[n];
    const auto* halves = reinterpret_cast<const uint16_t*>(w.scale);
    if (w.scale_type == M2_F16) return _cvtsh_ss(halves[n]);
    const uint32_t bits = static_cast<uint32_t>(halves[n]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// What is left to multiply a sum with after the scales inside a row.
inline float factor_of_row(const Task& task, int64_t n) {
    const Matrix& w = task.w;
    switch (w.format) {
        case M2_NVFP4: return 0.5f * w.global_scale;
        case M2_MXFP4: return 0.5f;
        case M2_INT8: return scale_of_row(w, n) * 0x1p-24f;  // of byte_to_float
        default: return 1.0f;
    }
}

inline Entries entries_of(const uint8_t* first, int64_t n, int64_t rows, int64_t stride) {
    return {first + (first ? n * stride : 0), first + (first ? rows * stride : 0)};
}
inline Row row_of(const Matrix& w, int64_t n, int x_group) {
    const int per_scale = w.group / x_group;
    return {w.codes + n * w.code_stride, entries_of(w.scale, n, w.rows, w.scale_stride),
            entries_of(w.zero_point, n, w.rows, w.zero_stride),
            per_scale > 1 ? __builtin_ctz(static_cast<unsigned>(per_scale)) : 0};
}
inline const float* block_scale(const Matrix& w, int64_t n) {
    if (w.format != M2_FP8_BLOCK) return nullptr;
    return reinterpret_cast<const float*>(w.scale + n / w.block_rows * w.scale_stride);
}

// Rows of activations that meet a tile before the next expands.
constexpr int64_t kTokensAtOnce = 128;

// run(m0, m1) for slices of the task's tokens.
template <class Run>
inline void for_slices(const Task& task, const Run& run) {
    for (int64_t m0 = 0; m0 < task.num_tokens; m0 += kTokensAtOnce) {
        const int64_t left = task.num_tokens - m0;
        run(m0, m0 + (left < kTokensAtOnce ? left : kTokensAtOnce));
    }
}

// Rows of activations in as few passes of at most kAtOnce as there can be, of about the same size: a
// pass of one or two takes as long as one of four.
template <int64_t kAtOnce, int64_t kMostRows>
struct Passes {
    Passes(int64_t m0, int64_t m1) : count((m1 - m0 + kAtOnce - 1) / kAtOnce) {
        for (int64_t i = 0; i <= count; ++i) starts[i] = m0 + (count ? (m1 - m0) * i / count : 0);
    }
    // run(pass, m, the rows, as a constant) for every pass.
    template <class Run>
    void each_pass(const Run& run) const {
        for (int64_t i = 0; i < count; ++i) {
            each<kAtOnce>([&](auto less) {
                constexpr int64_t kRows = kAtOnce - less;
                if (starts[i + 1] - starts[i] == kRows) {
                    run(i, starts[i], std::integral_constant<int, kRows>{});
                }
            });
        }
    }

    int64_t count, starts[(kMostRows + kAtOnce - 1) / kAtOnce + 1];
};

inline Int8Activations int8_activations(const Activations& x, int64_t token) {
    const int64_t group = token * (x.padded / x.group);
    return {static_cast<const int8_t*>(x.values) + token * x.padded, x.scale + group,
            x.sum + group};
}
inline FloatActivations float_activations(const Activations& x, int64_t token) {
    return {static_cast<const float*>(x.values) + token * x.padded,
            x.sum + token * (x.padded / x.group)};
}

}  // namespace
}  // namespace m2::M2_ISA
