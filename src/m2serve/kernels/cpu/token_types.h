// What the orchestration of a step and the kernels of each instruction set agree on, beside the
// matrices of types.h.
#pragma once

#include "types.h"

extern "C" {

// Element type of keys and values. INT8 has a float32 scale for every token and head; FP8 is E4M3
// without a scale, saturating at 448.
enum m2_kv_format : int32_t { M2_KV_F32 = 0, M2_KV_BF16 = 1, M2_KV_INT8 = 2, M2_KV_FP8 = 3 };

}  // extern "C"

namespace m2 {

// Keys of one tile: their scores, and their float32 copies, stay in the first caches.
constexpr int64_t kTileKeys = 64;
// A head's floats are padded with zeros to this many.
constexpr int64_t kHeadPad = 64;

constexpr int64_t padded_head(int64_t head_dim) {
    return (head_dim + kHeadPad - 1) / kHeadPad * kHeadPad;
}
// Heads that share keys of which attend_token knows; M2 has six.
constexpr bool are_few_heads(int64_t heads) {
    return heads == 2 || heads == 3 || heads == 4 || heads == 6 || heads == 8;
}
constexpr int64_t kv_element_bytes(int32_t format) {
    return format == M2_KV_F32 ? 4 : format == M2_KV_BF16 ? 2 : 1;
}

// The keys and values of one sequence, layer and key/value head. The pointers are to the head's part
// of block 0; the next block's follows after the other heads' parts of this one.
struct HeadCache {
    int32_t format;
    int64_t block_size, kv_heads, head_dim;
    const int32_t* blocks;
    const uint8_t* keys;
    const uint8_t* values;
    const float* key_scales;
    const float* value_scales;
};

// Keys first..end of a head; none when end <= first.
struct HeadKeys {
    HeadCache cache;
    int64_t first, end;
};

// `heads` query rows for each of `num_tokens` tokens at consecutive positions, token after token.
// max, sum and acc are the state of the online softmax: sum and acc are relative to exp(max). A row
// of q and acc has padded_head floats; q is already multiplied by the softmax scale, acc is in the
// order of the cache's format until order_dims.
struct QueryRows {
    int64_t heads, num_tokens, first_position;
    const float* q;
    float* max;
    float* sum;
    float* acc;

    int64_t count() const { return heads * num_tokens; }
};

// One token, whose rows attend to the same keys of several heads, which lie side by side in the cache.
// The keys end at the token's own at the latest.
struct TokenHeads {
    HeadKeys keys;   // of the first head
    QueryRows rows;  // of the first head
    int64_t num_heads;
    int64_t q_stride, state_stride;  // floats from one head's q, and max, sum and acc, to the next's
};

// The kernels of one instruction set for all that is no matrix product.
struct TokenKernels {
    // Query rows that `attend` and `attend_prompt` are best given at once.
    int64_t item_rows, prompt_rows;
    // Bytes of scratch the others need for so many query rows of a head, of so many heads at once.
    int64_t (*attend_scratch_bytes)(int64_t rows, int64_t heads, int64_t head_dim);
    // Brings the keys into the state of the rows; a token sees the keys up to its position. Keys that
    // no row sees are not read. `next` is what will be wanted after them.
    void (*attend)(const HeadKeys&, const HeadKeys& next, const QueryRows&, void* scratch);
    // The same for tokens of a prompt where rounding to bfloat16 is allowed and the cache is not
    // float32: with tiles, queries and weights are rounded.
    void (*attend_prompt)(const HeadKeys&, const HeadKeys& next, const QueryRows&, void* scratch);
    // The same as `attend` for one token of are_few_heads, whose rows of q have been through arrange_dims.
    void (*attend_token)(const TokenHeads&, void* scratch);
    // The same where 16 of the 24 bits of queries and weights are enough.
    void (*attend_token_rounded)(const TokenHeads&, void* scratch);
    // A row of q from the order of the dimensions to that of the cache's format.
    void (*arrange_dims)(int32_t format, float* q, int64_t padded);
    // A row of acc in the order of the dimensions.
    void (*order_dims)(int32_t format, float* acc, int64_t padded);
    // x += delta (unless null), then out = x * rsqrt(mean(x^2) + eps) * weight. out may be x.
    void (*add_rms_norm)(float* x, const float* delta, const float* weight, int64_t size, float eps,
                         float* out);
    // Turns pairs (i, i + half) of each head.
    void (*rotate)(float* x, int64_t heads, int64_t head_dim, int64_t half, const float* cos,
                   const float* sin);
    // One head of one token into the cache; `scale` is written for INT8 only.
    void (*store_head)(int32_t format, const float* from, int64_t head_dim, void* to, float* scale);
    // out = value * factor, and out += value * factor.
    void (*scale_row)(const float* value, float factor, int64_t size, float* out);
    void (*add_scaled_row)(const float* value, float factor, int64_t size, float* out);
    // count numbers of format M2_BF16, M2_F16 or M2_F32.
    void (*to_floats)(int32_t format, const void* from, int64_t count, float* to);
    // In place; below -88 as at -88.
    void (*sigmoid)(float* x, int64_t size);
};

const TokenKernels* avx2_token_kernels();
const TokenKernels* avx512_token_kernels();
const TokenKernels* best_token_kernels();    // of the instruction set of best_kernels()

}  // namespace m2
