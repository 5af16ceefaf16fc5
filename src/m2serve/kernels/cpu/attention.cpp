#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pool.h"

namespace m2 {
namespace {

// Keys of a piece of a decoding sequence's context, and the pieces it is cut into at most.
constexpr int64_t kPieceKeys = 256;
constexpr int64_t kMostPieces = 16;
// What two threads write lies on different cache lines.
constexpr int64_t kLineFloats = 16;
// Of decoding sequences, so that threads share them evenly.
constexpr int64_t kUnitsPerThread = 2;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

}  // namespace

m2_kv_cache layer_of(const m2_kv_cache& cache, int64_t layer) {
    const int64_t heads = cache.num_blocks * cache.block_size * cache.kv_heads;
    const int64_t bytes = heads * cache.head_dim * kv_element_bytes(cache.format) * layer;
    m2_kv_cache one = cache;
    one.keys = static_cast<uint8_t*>(cache.keys) + bytes;
    one.values = static_cast<uint8_t*>(cache.values) + bytes;
    if (cache.key_scales) one.key_scales = cache.key_scales + heads * layer;
    if (cache.value_scales) one.value_scales = cache.value_scales + heads * layer;
    return one;
}

void AttentionPlan::make(const m2_batch& batch, int64_t query_heads, const m2_kv_cache& cache,
                         bool may_round) {
    may_round_ = may_round && cache.format != M2_KV_F32;
    const TokenKernels& kernels = *best_token_kernels();
    const int64_t prompt_rows = may_round_ ? kernels.prompt_rows : kernels.item_rows;
    query_heads_ = query_heads;
    kv_heads_ = cache.kv_heads;
    head_dim_ = cache.head_dim;
    group_ = query_heads_ / kv_heads_;
    padded_ = padded_head(head_dim_);
    items_.clear();
    splits_.clear();
    num_partials_ = 0;
    for (int64_t s = 0; s < batch.num_sequences; ++s) {
        const int64_t row = batch.query_start_loc[s];
        const int64_t count = batch.query_start_loc[s + 1] - row;
        const int64_t context = batch.seq_lens[s];
        if (count == 1) {
            add_decode(s, row, context);
            continue;
        }
        const int64_t step = std::max<int64_t>(1, prompt_rows / group_);
        // From the back: the items with the longest contexts first.
        for (int64_t start = (count - 1) / step * step; start >= 0 && count > 0; start -= step) {
            const int64_t tokens = std::min(step, count - start);
            const int64_t position = context - count + start;
            items_.push_back({s, row + start, tokens, position, 0, position + tokens, -1, false});
        }
    }
    state_floats_ = round_up(group_ * (padded_ + 2), kLineFloats);
    partials_.resize(static_cast<size_t>(num_partials_ * kv_heads_ * state_floats_));
    cut_into_units();
    int64_t rows = 0;
    most_rows_ = 0;
    for (const Unit& unit : units_) {
        rows = std::max(rows, unit.item.num_tokens * group_);
        most_rows_ = std::max(most_rows_, unit.num_heads * unit.item.num_tokens * group_);
    }
    const int64_t attend_floats = kernels.attend_scratch_bytes(rows, kv_heads_, head_dim_) / 4;
    scratch_floats_ = round_up(most_rows_ * (2 * padded_ + 2) + attend_floats, kLineFloats);
    scratch_.resize(static_cast<size_t>(num_threads() * scratch_floats_));
}

void AttentionPlan::cut_into_units() {
    const auto is_piece = [](const Item& item) { return item.num_tokens == 1; };
    const int64_t pieces = std::count_if(items_.begin(), items_.end(), is_piece);
    int64_t together = kv_heads_;
    while (together > 1 && pieces * (kv_heads_ / together) < kUnitsPerThread * num_threads()) {
        do {
            --together;
        } while (kv_heads_ % together != 0);
    }
    units_.clear();
    for (const Item& item : items_) {
        const int64_t heads = is_piece(item) ? together : 1;
        for (int64_t h = 0; h < kv_heads_; h += heads) units_.push_back({item, h, heads});
    }
}

void AttentionPlan::add_decode(int64_t sequence, int64_t row, int64_t context) {
    const int64_t share = (context + kMostPieces - 1) / kMostPieces;
    const int64_t piece = std::max(kPieceKeys, round_up(share, kPieceKeys));
    const int64_t count = (context + piece - 1) / piece;
    for (int64_t p = 0; p < count; ++p) {
        const int64_t end = std::min(context, (p + 1) * piece);
        const int64_t partial = count > 1 ? num_partials_ + p : -1;
        items_.push_back({sequence, row, 1, context - 1, p * piece, end, partial, true});
    }
    if (count > 1) {
        splits_.push_back({row, num_partials_, count});
        num_partials_ += count;
    }
}

float* AttentionPlan::partial_of(int64_t partial, int64_t head) {
    return partials_.data() + (partial * kv_heads_ + head) * state_floats_;
}

void AttentionPlan::run(const m2_kv_cache& cache, const m2_batch& batch, const float* q,
                        float* out) {
    parallel_for(static_cast<int64_t>(units_.size()), [&](int64_t i, int thread) {
        run_unit(units_[static_cast<size_t>(i)], cache, batch, q, out,
                 scratch_.data() + thread * scratch_floats_);
    });
    const auto num_splits = static_cast<int64_t>(splits_.size());
    if (num_splits == 0) return;
    parallel_for(num_splits * kv_heads_, [&](int64_t i, int) {
        merge(splits_[static_cast<size_t>(i / kv_heads_)], i % kv_heads_, out);
    });
}

namespace {

// The part of one head in a layer's cache, for one sequence.
HeadCache head_of(const m2_kv_cache& cache, int64_t head, const int32_t* blocks) {
    const int64_t before = head * cache.block_size;  // vectors of the heads before this one
    const int64_t bytes = before * cache.head_dim * kv_element_bytes(cache.format);
    return {cache.format,
            cache.block_size,
            cache.kv_heads,
            cache.head_dim,
            blocks,
            static_cast<const uint8_t*>(cache.keys) + bytes,
            static_cast<const uint8_t*>(cache.values) + bytes,
            cache.key_scales ? cache.key_scales + before : nullptr,
            cache.value_scales ? cache.value_scales + before : nullptr};
}

}  // namespace

void AttentionPlan::run_unit(const Unit& unit, const m2_kv_cache& cache, const m2_batch& batch,
                             const float* q, float* out, float* scratch) {
    const TokenKernels& kernels = *best_token_kernels();
    const Item& item = unit.item;
    const int64_t rows = item.num_tokens * group_;  // of a head
    const int64_t q_size = query_heads_ * head_dim_;
    float* own_states = scratch + most_rows_ * padded_;
    float* memory = own_states + most_rows_ * (padded_ + 2);

    const auto queries_of = [&](int64_t h) {
        float* state = item.partial < 0 ? own_states + h * rows * (padded_ + 2)
                                        : partial_of(item.partial, unit.first_head + h);
        float* max = state + rows * padded_;
        return QueryRows{group_, item.num_tokens, item.first_position, scratch + h * rows * padded_,
                         max,    max + rows,      state};
    };
    const auto offset = [&](int64_t h, int64_t r) {
        return (item.row + r / group_) * q_size +
               ((unit.first_head + h) * group_ + r % group_) * head_dim_;
    };
    const bool has_few_rows = item.decodes && are_few_heads(group_);
    const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
    for (int64_t h = 0; h < unit.num_heads; ++h) {
        const QueryRows queries = queries_of(h);
        for (int64_t r = 0; r < rows; ++r) {
            float* scaled = scratch + (h * rows + r) * padded_;
            kernels.scale_row(q + offset(h, r), scale, head_dim_, scaled);
            std::fill(scaled + head_dim_, scaled + padded_, 0.0f);
            if (has_few_rows) kernels.arrange_dims(cache.format, scaled, padded_);
        }
        std::fill(queries.acc, queries.acc + rows * padded_, 0.0f);
        std::fill(queries.max, queries.max + rows, -std::numeric_limits<float>::infinity());
        std::fill(queries.sum, queries.sum + rows, 0.0f);
    }
    const int32_t* blocks = batch.block_table + item.sequence * batch.blocks;
    const auto keys_of = [&](int64_t h) {
        return HeadKeys{head_of(cache, unit.first_head + h, blocks), item.first_key, item.end_key};
    };
    if (has_few_rows) {
        const int64_t state_stride = item.partial < 0 ? rows * (padded_ + 2) : state_floats_;
        const auto attend = may_round_ ? kernels.attend_token_rounded : kernels.attend_token;
        attend({keys_of(0), queries_of(0), unit.num_heads, rows * padded_, state_stride}, memory);
    } else {
        const auto attend = may_round_ && !item.decodes ? kernels.attend_prompt : kernels.attend;
        for (int64_t h = 0; h < unit.num_heads; ++h) {
            HeadKeys next = keys_of(h + 1 < unit.num_heads ? h + 1 : h);
            if (h + 1 == unit.num_heads) next.end = next.first;
            attend(keys_of(h), next, queries_of(h), memory);
        }
    }
    for (int64_t h = 0; h < unit.num_heads; ++h) {
        const QueryRows queries = queries_of(h);
        for (int64_t r = 0; r < rows; ++r) {
            float* acc = queries.acc + r * padded_;
            kernels.order_dims(cache.format, acc, padded_);
            if (item.partial >= 0) continue;
            kernels.scale_row(acc, 1.0f / queries.sum[r], head_dim_, out + offset(h, r));
        }
    }
}

void AttentionPlan::merge(const Split& split, int64_t head, float* out) {
    const TokenKernels& kernels = *best_token_kernels();
    for (int64_t h = 0; h < group_; ++h) {
        float most = -std::numeric_limits<float>::infinity();
        const auto max_of = [&](int64_t p) {
            return partial_of(split.first_partial + p, head)[group_ * padded_ + h];
        };
        for (int64_t p = 0; p < split.count; ++p) most = std::max(most, max_of(p));
        float total = 0;
        float* to = out + split.row * query_heads_ * head_dim_ + (head * group_ + h) * head_dim_;
        for (int64_t p = 0; p < split.count; ++p) {
            const float* state = partial_of(split.first_partial + p, head);
            const float weight = std::exp(max_of(p) - most);
            total += state[group_ * (padded_ + 1) + h] * weight;
            const auto merge_row = p == 0 ? kernels.scale_row : kernels.add_scaled_row;
            merge_row(state + h * padded_, weight, head_dim_, to);
        }
        kernels.scale_row(to, 1.0f / total, head_dim_, to);
    }
}

}  // namespace m2
