#include "step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "linear.h"
#include "pool.h"
#include "router.h"

namespace m2 {
namespace {

// Rows of a chunk of the operations that go row by row.
constexpr int64_t kRowsAtOnce = 4;

template <class Run>
void for_rows(int64_t num_rows, const Run& run) {
    parallel_for((num_rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t chunk, int) {
        const int64_t end = std::min(num_rows, (chunk + 1) * kRowsAtOnce);
        for (int64_t row = chunk * kRowsAtOnce; row < end; ++row) run(row);
    });
}

template <class Buffer>
void grow(Buffer& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(static_cast<size_t>(size));
}

// Adds the time it lives to an operation's.
class Timer {
  public:
    Timer(Step& step, Operation operation)
        : seconds_(step.seconds[static_cast<size_t>(operation)]),
          start_(std::chrono::steady_clock::now()) {}
    ~Timer() {
        seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

  private:
    double& seconds_;
    std::chrono::steady_clock::time_point start_;
};

int64_t embedding_bytes(const m2_model& model) {
    return model.hidden_size * (model.embedding_format == M2_F32 ? 4 : 2);
}

}  // namespace

void rotary_cos_sin(const int64_t* positions, int64_t num_tokens, const float* inverse_frequencies,
                    int64_t half, float* cos, float* sin) {
    for_rows(num_tokens, [&](int64_t t) {
        for (int64_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(positions[t]) * inverse_frequencies[i];
            cos[t * half + i] = std::cos(angle);
            sin[t * half + i] = std::sin(angle);
        }
    });
}

void norm_rotate_and_store(const QkvRows& rows, const m2_kv_cache& cache) {
    const TokenKernels& kernels = *best_token_kernels();
    const int64_t q_size = rows.query_heads * cache.head_dim;
    const int64_t kv_size = cache.kv_heads * cache.head_dim;
    const int64_t head_bytes = cache.head_dim * kv_element_bytes(cache.format);
    const auto store = [&](const float* from, void* base, float* scales, int64_t slot) {
        const int64_t block = slot / cache.block_size;
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
            const int64_t index =
                (block * cache.kv_heads + head) * cache.block_size + slot % cache.block_size;
            kernels.store_head(cache.format, from + head * cache.head_dim, cache.head_dim,
                               static_cast<uint8_t*>(base) + index * head_bytes,
                               scales ? scales + index : nullptr);
        }
    };
    for_rows(rows.num_tokens, [&](int64_t t) {
        float* q = rows.q + t * q_size;
        float* k = rows.k + t * kv_size;
        const float* cos = rows.cos + t * rows.half;
        const float* sin = rows.sin + t * rows.half;
        kernels.add_rms_norm(q, nullptr, rows.q_norm, q_size, rows.eps, q);
        kernels.add_rms_norm(k, nullptr, rows.k_norm, kv_size, rows.eps, k);
        kernels.rotate(q, rows.query_heads, cache.head_dim, rows.half, cos, sin);
        kernels.rotate(k, cache.kv_heads, cache.head_dim, rows.half, cos, sin);
        store(k, cache.keys, cache.key_scales, rows.slot_mapping[t]);
        store(rows.v + t * kv_size, cache.values, cache.value_scales, rows.slot_mapping[t]);
    });
}

void Step::reserve(const m2_model& model, const m2_batch& batch) {
    const int64_t tokens = batch.num_tokens;
    const int64_t kv_size = model.kv_heads * model.head_dim;
    const int64_t num_experts = model.layers[0].gate.rows;
    grow(x_, tokens * model.hidden_size);
    grow(normed_, tokens * model.hidden_size);
    grow(delta_, tokens * model.hidden_size);
    grow(q_, tokens * model.query_heads * model.head_dim);
    grow(attended_, tokens * model.query_heads * model.head_dim);
    grow(k_, tokens * kv_size);
    grow(v_, tokens * kv_size);
    grow(cos_, tokens * model.rotary_dim / 2);
    grow(sin_, tokens * model.rotary_dim / 2);
    grow(scores_, tokens * num_experts);
    grow(weights_, tokens * model.top_k);
    grow(ids_, tokens * model.top_k);
    hit_.resize(static_cast<size_t>(num_experts));
}

void Step::forward(const m2_model& model, const m2_kv_cache& cache, const m2_batch& batch,
                        float* hidden) {
    const TokenKernels& kernels = *best_token_kernels();
    const int64_t size = model.hidden_size;
    reserve(model, batch);
    attention_.make(batch, model.query_heads, cache, model.activation != M2_ACTIVATION_FLOAT);
    rotary_cos_sin(batch.positions, batch.num_tokens, model.inverse_frequencies,
                   model.rotary_dim / 2, cos_.data(), sin_.data());
    for_rows(batch.num_tokens, [&](int64_t t) {
        const auto* rows = static_cast<const uint8_t*>(model.embedding);
        kernels.to_floats(model.embedding_format,
                          rows + batch.token_ids[t] * embedding_bytes(model), size,
                          x_.data() + t * size);
    });
    ++num_forwards;
    const float* delta = nullptr;
    for (int64_t index = 0; index < model.num_layers; ++index) {
        norm(model.layers[index].input_norm, delta, batch.num_tokens, model);
        layer(model, model.layers[index], layer_of(cache, index), batch);
        delta = delta_.data();
        layers_computed.fetch_add(1, std::memory_order_relaxed);
    }
    const Timer timer(*this, Operation::kRmsNorm);
    for_rows(batch.num_logits_rows, [&](int64_t r) {
        float* x = x_.data() + batch.logits_rows[r] * size;
        float* to = hidden + r * size;
        // A row may be asked for twice, so the residual is added to the copy.
        std::memcpy(to, x, static_cast<size_t>(size) * 4);
        kernels.add_rms_norm(to, delta_.data() + batch.logits_rows[r] * size, model.norm, size,
                             model.rms_norm_eps, to);
    });
}

// Leaves what the experts add in delta_; x_ has all that came before.
void Step::layer(const m2_model& model, const m2_layer& layer, const m2_kv_cache& cache,
                      const m2_batch& batch) {
    const int64_t tokens = batch.num_tokens;
    const auto activation = static_cast<m2_activation>(model.activation);
    {
        const Timer timer(*this, Operation::kLinear);
        const m2_weight* const weights[] = {&layer.q_proj, &layer.k_proj, &layer.v_proj};
        float* const outputs[] = {q_.data(), k_.data(), v_.data()};
        linears(weights, 3, normed_.data(), tokens, outputs, activation);
    }
    {
        const Timer timer(*this, Operation::kWriteKv);
        norm_rotate_and_store({tokens, model.query_heads, model.rotary_dim / 2, model.rms_norm_eps,
                               layer.q_norm, layer.k_norm, cos_.data(), sin_.data(),
                               batch.slot_mapping, q_.data(), k_.data(), v_.data()},
                              cache);
    }
    {
        const Timer timer(*this, Operation::kAttention);
        attention_.run(cache, batch, q_.data(), attended_.data());
    }
    {
        const Timer timer(*this, Operation::kLinear);
        linear(layer.o_proj, attended_.data(), tokens, delta_.data(), activation);
    }
    norm(layer.post_attention_norm, delta_.data(), tokens, model);
    {
        const Timer timer(*this, Operation::kRoute);
        route(layer.gate, layer.correction_bias, normed_.data(), tokens, model.top_k,
              scores_.data(), weights_.data(), ids_.data());
        count_experts(tokens, model.top_k, layer.gate.rows);
    }
    const Timer timer(*this, Operation::kExperts);
    experts(layer.w13, layer.w2, normed_.data(), weights_.data(), ids_.data(), tokens, model.top_k,
            delta_.data(), activation);
}

// x_ += delta, normed_ = norm(x_).
void Step::norm(const float* weight, const float* delta, int64_t num_tokens,
                     const m2_model& model) {
    const Timer timer(*this, Operation::kRmsNorm);
    const TokenKernels& kernels = *best_token_kernels();
    const int64_t size = model.hidden_size;
    for_rows(num_tokens, [&](int64_t t) {
        kernels.add_rms_norm(x_.data() + t * size, delta ? delta + t * size : nullptr, weight, size,
                             model.rms_norm_eps, normed_.data() + t * size);
    });
}

void Step::count_experts(int64_t num_tokens, int64_t top_k, int64_t num_experts) {
    hit_.assign(static_cast<size_t>(num_experts), false);
    for (int64_t i = 0; i < num_tokens * top_k; ++i) {
        const auto id = static_cast<size_t>(ids_[static_cast<size_t>(i)]);
        experts_hit += hit_[id] ? 0 : 1;
        hit_[id] = true;
    }
}

void Step::head(const m2_model& model, const float* hidden, int64_t num_rows, float* logits) {
    const Timer timer(*this, Operation::kHead);
    linear(model.lm_head, hidden, num_rows, logits, static_cast<m2_activation>(model.activation));
}

}  // namespace m2
