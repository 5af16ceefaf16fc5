// The whole forward pass of a step: token ids in, normed hidden states and logits out.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "types.h"
#include "workspace.h"

extern "C" {

// Norms and the router's bias are float32; the gate is an M2_F32 matrix.
struct m2_layer {
    const float* input_norm;
    const float* q_norm;
    const float* k_norm;
    const float* post_attention_norm;
    const float* correction_bias;
    m2_weight q_proj, k_proj, v_proj, o_proj, gate, w13, w2;
};

// `activation` is that of all products but the gate's. inverse_frequencies has
// rotary_dim / 2 entries; embedding is [vocabulary, hidden] of M2_BF16, M2_F16 or M2_F32.
struct m2_model {
    int64_t hidden_size, num_layers, query_heads, kv_heads, head_dim, rotary_dim, top_k;
    float rms_norm_eps;
    int32_t activation, embedding_format;
    const float* inverse_frequencies;
    const void* embedding;
    const float* norm;
    m2_layer* layers;
    m2_weight lm_head;
};

}  // extern "C"

namespace m2 {

enum class Operation { kLinear, kRmsNorm, kWriteKv, kAttention, kRoute, kExperts, kHead, kCount };

// Buffers of a step, kept from one to the next, and what the steps so far have cost.
class Step {
  public:
    // hidden is [num_logits_rows, hidden_size].
    void forward(const m2_model& model, const m2_kv_cache& cache, const m2_batch& batch,
                 float* hidden);
    // logits are [num_rows, vocabulary].
    void head(const m2_model& model, const float* hidden, int64_t num_rows, float* logits);

    std::array<double, static_cast<std::size_t>(Operation::kCount)> seconds{};
    int64_t num_forwards = 0;
    int64_t experts_hit = 0;  // distinct experts of a layer and step, summed up
    // Layers of all forward passes so far; any thread may look.
    std::atomic<int64_t> layers_computed{0};

  private:
    void reserve(const m2_model& model, const m2_batch& batch);
    void layer(const m2_model& model, const m2_layer& layer, const m2_kv_cache& cache,
               const m2_batch& batch);
    void norm(const float* weight, const float* delta, int64_t num_tokens, const m2_model& model);
    void count_experts(int64_t num_tokens, int64_t top_k, int64_t num_experts);

    AttentionPlan attention_;
    AlignedFloats x_, normed_, delta_, q_, k_, v_, attended_, cos_, sin_, scores_, weights_;
    std::vector<int64_t> ids_;
    std::vector<bool> hit_;
};

// cos and sin [num_tokens, half] of position * inverse_frequency.
void rotary_cos_sin(const int64_t* positions, int64_t num_tokens, const float* inverse_frequencies,
                    int64_t half, float* cos, float* sin);

// Norms over whole rows of q and k, in place, rotates their heads, and stores k and v in one layer's
// cache. q is [num_tokens, query_heads * head_dim], k and v [num_tokens, kv_heads * head_dim].
struct QkvRows {
    int64_t num_tokens, query_heads, half;
    float eps;
    const float* q_norm;
    const float* k_norm;
    const float* cos;
    const float* sin;
    const int64_t* slot_mapping;
    float* q;
    float* k;
    const float* v;
};
void norm_rotate_and_store(const QkvRows& rows, const m2_kv_cache& cache);

}  // namespace m2
