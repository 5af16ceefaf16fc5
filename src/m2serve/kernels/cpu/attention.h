// Paged attention of a whole step: which thread attends to what.
#pragma once

#include <cstdint>
#include <vector>

#include "token_types.h"
#include "workspace.h"

extern "C" {

// Keys and values [num_blocks, kv_heads, block_size, head_dim] of each layer, layers one after the
// other, and their scales [num_blocks, kv_heads, block_size] (null unless INT8). The vectors of a
// head lie side by side, because a thread reads those of one head.
struct m2_kv_cache {
    int32_t format;
    int64_t num_blocks, block_size, kv_heads, head_dim;
    void* keys;
    void* values;
    float* key_scales;
    float* value_scales;
};

// As ForwardBatch: num_tokens rows of num_sequences sequences, `blocks` columns of block_table.
struct m2_batch {
    int64_t num_tokens, num_sequences, blocks, num_logits_rows;
    const int64_t* token_ids;
    const int64_t* positions;
    const int64_t* slot_mapping;
    const int32_t* query_start_loc;
    const int32_t* seq_lens;
    const int32_t* block_table;
    const int64_t* logits_rows;
};

}  // extern "C"

namespace m2 {

// The cache of one layer.
m2_kv_cache layer_of(const m2_kv_cache& cache, int64_t layer);

// How one step's attention is cut into items; the same for every layer. A sequence with one new
// token is cut along its context, in pieces that depend on its length alone, and their results are
// merged in order; one with several is cut along its tokens. A piece of the first kind is computed
// for as many heads together as leaves work for all threads: their keys lie side by side in memory.
class AttentionPlan {
  public:
    // `cache` is any layer's. may_round: a prompt's queries and weights may be rounded to bfloat16,
    // a decoding token's to 16 of their 24 bits; with a float32 cache they are not.
    void make(const m2_batch& batch, int64_t query_heads, const m2_kv_cache& cache, bool may_round);
    // q and out are [num_tokens, query_heads * head_dim]; `cache` is one layer's.
    void run(const m2_kv_cache& cache, const m2_batch& batch, const float* q, float* out);

  private:
    struct Item {
        int64_t sequence, row, num_tokens, first_position, first_key, end_key;
        int64_t partial;  // where its state goes; -1 when it attends to the whole context
        bool decodes;     // the only new token of its sequence
    };
    struct Split {
        int64_t row, first_partial, count;
    };
    // Some of the heads of an item, on one thread.
    struct Unit {
        Item item;
        int64_t first_head, num_heads;
    };
    void cut_into_units();
    void run_unit(const Unit& unit, const m2_kv_cache& cache, const m2_batch& batch,
                  const float* q, float* out, float* scratch);
    void merge(const Split& split, int64_t head, float* out);
    void add_decode(int64_t sequence, int64_t row, int64_t context);
    float* partial_of(int64_t partial, int64_t head);

    int64_t query_heads_ = 0, kv_heads_ = 0, head_dim_ = 0, group_ = 0, padded_ = 0;
    int64_t num_partials_ = 0, state_floats_ = 0, scratch_floats_ = 0, most_rows_ = 0;
    bool may_round_ = false;
    std::vector<Item> items_;
    std::vector<Unit> units_;
    std::vector<Split> splits_;
    AlignedFloats partials_, scratch_;
};

}  // namespace m2
