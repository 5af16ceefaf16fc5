// Operations on single rows of activations: norms, rotary embedding, scaled sums.
#pragma once

#include "attend_token.h"

namespace m2::M2_ISA {
namespace {

void add_rms_norm(float* x, const float* delta, const float* weight, int64_t size, float eps,
                  float* out) {
    F squares[2] = {zero(), zero()};
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
        for (int v = 0; v < 2; ++v) {
            F value = load(x + i + v * kLanes);
            if (delta) {
                value = add(value, load(delta + i + v * kLanes));
                store(x + i + v * kLanes, value);
            }
            squares[v] = fma(value, value, squares[v]);
        }
    }
    float total = sum(add(squares[0], squares[1]));
    for (; i < size; ++i) {
        if (delta) x[i] += delta[i];
        total += x[i] * x[i];
    }
    const float scale = 1.0f / std::sqrt(total / static_cast<float>(size) + eps);
    const F factor = splat(scale);
    for (i = 0; i + kLanes <= size; i += kLanes) {
        store(out + i, mul(mul(load(x + i), factor), load(weight + i)));
    }
    for (; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

void rotate(float* x, int64_t heads, int64_t head_dim, int64_t half, const float* cos,
            const float* sin) {
    for (int64_t h = 0; h < heads; ++h) {
        float* first = x + h * head_dim;
        float* second = first + half;
        int64_t i = 0;
        for (; i + kLanes <= half; i += kLanes) {
            const F a = load(first + i), b = load(second + i), c = load(cos + i), s = load(sin + i);
            store(first + i, fnma(b, s, mul(a, c)));
            store(second + i, fma(a, s, mul(b, c)));
        }
        for (; i < half; ++i) {
            const float a = first[i], b = second[i];
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

void scale_row(const float* value, float factor, int64_t size, float* out) {
    for (int64_t i = 0; i < size; ++i) out[i] = value[i] * factor;
}
void add_scaled_row(const float* value, float factor, int64_t size, float* out) {
    for (int64_t i = 0; i < size; ++i) out[i] += value[i] * factor;
}

void to_floats(int32_t format, const void* from, int64_t count, float* to) {
    if (format == M2_F32) {
        std::memcpy(to, from, static_cast<size_t>(count) * 4);
        return;
    }
    const auto* halves = static_cast<const uint16_t*>(from);
    const auto convert = [&](const uint16_t* source, float* target) {
        store(target, format == M2_BF16 ? bf16_floats(source) : f16_floats(source));
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) convert(halves + i, to + i);
    if (i < count) {
        uint16_t rest[kLanes] = {};
        float values[kLanes];
        std::memcpy(rest, halves + i, static_cast<size_t>(count - i) * 2);
        convert(rest, values);
        std::memcpy(to + i, values, static_cast<size_t>(count - i) * 4);
    }
}

void sigmoid(float* x, int64_t size) {
    const auto of = [](F value) {
        const Floats result = 1.0f / (Floats)one_and_exponential(value);
        return (F)result;
    };
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(x + i, of(load(x + i)));
    if (i == size) return;
    float rest[kLanes] = {};
    const auto bytes = static_cast<size_t>(size - i) * 4;
    std::memcpy(rest, x + i, bytes);
    store(rest, of(load(rest)));
    std::memcpy(x + i, rest, bytes);
}

// Query rows of one item of a prefill: with more, they and their sums leave the second cache.
constexpr int64_t kItemRows = 48;

constexpr TokenKernels kTokenKernels{
    kItemRows,    kItemRows,    attend_scratch_bytes, attend,     attend,
    attend_token, attend_token, arrange_dims,         order_dims, add_rms_norm,
    rotate,       store_head,   scale_row,            add_scaled_row, to_floats,
    sigmoid};

}  // namespace
}  // namespace m2::M2_ISA
