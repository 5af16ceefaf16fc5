// The C interface of the operations on tokens and of the whole step. An int is 0, or 1 when there
// was no memory for the buffers. Pointers are not checked: Python makes them from checked tensors.
#include <algorithm>
#include <new>

#include "guarded.h"
#include "interleave.h"
#include "place.h"
#include "pool.h"
#include "router.h"
#include "step.h"

using m2::guarded;

#pragma GCC visibility push(default)
extern "C" {

void* m2_step_new() { return new (std::nothrow) m2::Step; }
void m2_step_free(void* step) { delete static_cast<m2::Step*>(step); }

// While a step runs, too.
int64_t m2_layers_computed(const void* step) {
    return static_cast<const m2::Step*>(step)->layers_computed.load(std::memory_order_relaxed);
}

// Puts the rows of all matrices of the model in the order of int8 activations, in place, those that
// can be and are not yet (interleave.h).
int m2_interleave_weights(m2_model* model) {
    return guarded([&] {
        for (int64_t i = 0; i < model->num_layers; ++i) {
            m2_layer& layer = model->layers[i];
            for (m2_weight* weight : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj,
                                      &layer.w13, &layer.w2}) {
                m2::interleave(*weight);
            }
        }
        m2::interleave(model->lm_head);
    });
}

// Puts all matrices of the model into the memory of the nodes that compute with them; the bytes
// moved, 0 where all threads are on one node. Without memory for a copy the rest stays where it is.
int64_t m2_place_weights(const m2_model* model) {
    int64_t bytes = 0;
    guarded([&] {
        for (int64_t i = 0; i < model->num_layers; ++i) {
            const m2_layer& layer = model->layers[i];
            for (const m2_weight* weight : {&layer.q_proj, &layer.k_proj, &layer.v_proj,
                                            &layer.o_proj, &layer.gate, &layer.w13, &layer.w2}) {
                bytes += m2::place(*weight);
            }
        }
        bytes += m2::place(model->lm_head);
    });
    return bytes;
}

int m2_forward(void* step, const m2_model* model, const m2_kv_cache* cache,
               const m2_batch* batch, float* hidden) {
    return guarded([&] {
        const m2::KeptSeats kept;  // scratch is as large as there are threads when it is made
        static_cast<m2::Step*>(step)->forward(*model, *cache, *batch, hidden);
    });
}

int m2_logits(void* step, const m2_model* model, const float* hidden, int64_t num_rows,
              float* logits) {
    return guarded(
        [&] { static_cast<m2::Step*>(step)->head(*model, hidden, num_rows, logits); });
}

// Seconds of every m2::Operation, forward passes, and experts hit since the last call.
void m2_take_costs(void* step, double* seconds, int64_t* num_forwards, int64_t* experts_hit) {
    auto* costs = static_cast<m2::Step*>(step);
    std::copy(costs->seconds.begin(), costs->seconds.end(), seconds);
    *num_forwards = costs->num_forwards;
    *experts_hit = costs->experts_hit;
    costs->seconds.fill(0);
    costs->num_forwards = costs->experts_hit = 0;
}

int m2_rms_norm(const float* x, const float* weight, int64_t num_rows, int64_t size, float eps,
                 float* out) {
    m2::parallel_for(num_rows, [&](int64_t row, int) {
        // Without a delta the input is only read.
        m2::best_token_kernels()->add_rms_norm(const_cast<float*>(x) + row * size, nullptr, weight,
                                               size, eps, out + row * size);
    });
    return 0;
}

int m2_route(const m2_weight* gate, const float* bias, const float* x, int64_t num_tokens,
             int64_t top_k, float* weights, int64_t* ids) {
    return guarded([&] {
        std::vector<float> logits(static_cast<size_t>(num_tokens * gate->rows));
        m2::route(*gate, bias, x, num_tokens, top_k, logits.data(), weights, ids);
    });
}

// Of one layer's cache.
int m2_norm_rotate_and_store(const m2_kv_cache* cache, const m2_batch* batch, int64_t query_heads,
                             int64_t rotary_dim, float eps, const float* inverse_frequencies,
                             const float* q_norm, const float* k_norm, float* q, float* k,
                             const float* v) {
    return guarded([&] {
        const int64_t half = rotary_dim / 2;
        std::vector<float> cos(static_cast<size_t>(batch->num_tokens * half)), sin(cos.size());
        m2::rotary_cos_sin(batch->positions, batch->num_tokens, inverse_frequencies, half,
                           cos.data(), sin.data());
        m2::norm_rotate_and_store({batch->num_tokens, query_heads, half, eps, q_norm, k_norm,
                                   cos.data(), sin.data(), batch->slot_mapping, q, k, v},
                                  *cache);
    });
}

int m2_paged_attention(const m2_kv_cache* cache, const m2_batch* batch, int64_t query_heads,
                       int64_t may_round, const float* q, float* out) {
    return guarded([&] {
        const m2::KeptSeats kept;
        m2::AttentionPlan plan;
        plan.make(*batch, query_heads, *cache, may_round != 0);
        plan.run(*cache, *batch, q, out);
    });
}

}  // extern "C"
#pragma GCC visibility pop
