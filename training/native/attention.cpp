// Causal attention of documents laid end to end, forward and backward, in the tile registers of
// AMX: what attention.py writes in PyTorch. Products are bfloat16 with sums in float32; scores and
// their softmax are float32 and never leave the cache.
//
// Everything is cut into blocks of 64 tokens, and a head has 64 dims, so that every product is one
// of 64 rows, 64 columns and 64 terms. Scores are in units of log2: exponentials are powers of two.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "blocks.h"

namespace {

constexpr float kScale = 0.125f;  // of a score: 64 to the power of -1/2
constexpr float kScaleLog2 = kScale * 1.44269504f;

// Scores of a block become weights relative to each row's new maximum, in bfloat16; what was summed
// before is brought to it. `diagonal`: a row sees the columns up to its own.
inline void soften(const FloatBlock& scores, bool diagonal, float* top, float* total,
                   FloatBlock& out, LeftBlock& weights) {
    const __m512 scale = _mm512_set1_ps(kScaleLog2), least = _mm512_set1_ps(-1e30f);
    for (int64_t row = 0; row < kSide; ++row) {
        __m512 score[4], most = least;
        for (int64_t v = 0; v < 4; ++v) {
            score[v] = _mm512_mul_ps(_mm512_load_ps(scores.numbers + row * kSide + v * 16), scale);
            if (diagonal) {
                score[v] = _mm512_mask_blend_ps(lanes_below(row + 1 - v * 16), least, score[v]);
            }
            most = _mm512_max_ps(most, score[v]);
        }
        const float now = std::max(top[row], _mm512_reduce_max_ps(most));
        const __m512 reference = _mm512_set1_ps(now);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t v = 0; v < 4; ++v) {
            score[v] = exp2(_mm512_sub_ps(score[v], reference));
            if (diagonal) score[v] = _mm512_maskz_mov_ps(lanes_below(row + 1 - v * 16), score[v]);
            sum = _mm512_add_ps(sum, score[v]);
        }
        Number* to = weights.numbers + row * kSide;
        _mm512_store_si512(to, rounded(score[0], score[1]));
        _mm512_store_si512(to + 32, rounded(score[2], score[3]));
        const float factor = std::exp2(top[row] - now);
        total[row] = total[row] * factor + _mm512_reduce_add_ps(sum);
        if (now != top[row]) {
            float* sums = out.numbers + row * kSide;
            for (int64_t v = 0; v < 4; ++v) {
                const __m512 before = _mm512_load_ps(sums + v * 16);
                _mm512_store_ps(sums + v * 16, _mm512_mul_ps(before, _mm512_set1_ps(factor)));
            }
        }
        top[row] = now;
    }
}

inline int64_t blocks_of(int64_t length) { return (length + kSide - 1) / kSide; }

// Where a document's numbers lie, of `heads` heads a token.
struct Heads {
    int64_t heads;
    int64_t stride() const { return heads * kSide; }
    int64_t at(int64_t token, int64_t head) const { return (token * heads + head) * kSide; }
};

struct Sizes {
    int64_t tokens;  // of all documents together
    Heads queries, keys;
    int64_t group() const { return queries.heads / keys.heads; }  // queries that share a key
};

struct Document {
    int64_t first, length;
    int64_t rows_of(int64_t block) const { return std::min(kSide, length - block * kSide); }
};

struct PackedKeys {
    RightBlock keys, values;  // terms are dims, terms are keys
};

// A block of a head's queries against all keys before it and its own.
void attend_block(const Sizes& sizes, const Document& document, int64_t head, int64_t block,
                  const Number* q, const std::vector<PackedKeys>& keys, Number* out,
                  float* logsumexp) {
    const int64_t count = document.rows_of(block), first = document.first + block * kSide;
    const int64_t at = sizes.queries.at(first, head), stride = sizes.queries.stride();
    LeftBlock rows, weights;
    FloatBlock scores, sums{};
    alignas(64) float top[kSide], total[kSide] = {};
    std::fill(top, top + kSide, -1e30f);
    load_rows(q + at, stride, count, rows);
    for (int64_t j = 0; j <= block; ++j) {
        multiply<false>(rows, keys[j].keys, scores);
        soften(scores, j == block, top, total, sums, weights);
        multiply<true>(weights, keys[j].values, sums);
    }
    for (int64_t row = 0; row < count; ++row) {
        float* numbers = sums.numbers + row * kSide;
        for (int64_t d = 0; d < kSide; ++d) numbers[d] /= total[row];
        logsumexp[head * sizes.tokens + first + row] = top[row] + std::log2(total[row]);
    }
    store_rows(sums, 1.0f, count, out + at, stride);
}

void attend(const Sizes& sizes, const Document& document, int64_t key_head, const Number* q,
            const Number* k, const Number* v, Number* out, float* logsumexp) {
    const TileRegisters registers;
    const int64_t blocks = blocks_of(document.length), group = sizes.group();
    std::vector<PackedKeys> keys(blocks);
    LeftBlock rows;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t from = sizes.keys.at(document.first + b * kSide, key_head);
        load_rows(k + from, sizes.keys.stride(), document.rows_of(b), rows);
        pack_transposed(rows, keys[b].keys);
        load_rows(v + from, sizes.keys.stride(), document.rows_of(b), rows);
        pack_rows(rows, keys[b].values);
    }
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
        for (int64_t b = 0; b < blocks; ++b) {
            attend_block(sizes, document, head, b, q, keys, out, logsumexp);
        }
    }
}

// What the backward pass needs of 64 queries of a head. Behind the last, weights are as good as 0
// (2^-126), and what they are multiplied with is 0.
struct Queries {
    RightBlock transposed, rows;              // of the queries: terms are dims, terms are queries
    RightBlock grads_transposed, grads_rows;  // of the loss by what they read
    alignas(64) float logsumexp[kSide], deltas[kSide];
    FloatBlock grads;  // of the loss by the queries, [dims, queries]
};

inline float dot(const Number* a, const Number* b) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < kSide; d += 16) {
        sum = _mm512_fmadd_ps(widened(a + d), widened(b + d), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// Rows are keys, columns queries: scores become weights, and gradients by the weights those by the
// scores.
inline void weights_and_grads(const FloatBlock& scores, const FloatBlock& by_weight, bool diagonal,
                              const Queries& queries, LeftBlock& weights, LeftBlock& grads) {
    const __m512 scale = _mm512_set1_ps(kScaleLog2);
    for (int64_t row = 0; row < kSide; ++row) {
        __m512 weight[4], grad[4];
        for (int64_t v = 0; v < 4; ++v) {
            const int64_t query = v * 16, at = row * kSide + query;
            const __m512 logsumexp = _mm512_load_ps(queries.logsumexp + query);
            const __m512 score = _mm512_load_ps(scores.numbers + at);
            weight[v] = exp2(_mm512_fmsub_ps(score, scale, logsumexp));
            if (diagonal) {  // queries before the key do not see it
                weight[v] = _mm512_maskz_mov_ps(~lanes_below(row - query), weight[v]);
            }
            const __m512 delta = _mm512_load_ps(queries.deltas + query);
            const __m512 by = _mm512_load_ps(by_weight.numbers + at);
            grad[v] = _mm512_mul_ps(weight[v], _mm512_sub_ps(by, delta));
        }
        for (int64_t v = 0; v < 4; v += 2) {
            const int64_t at = row * kSide + v * 16;
            _mm512_store_si512(weights.numbers + at, rounded(weight[v], weight[v + 1]));
            _mm512_store_si512(grads.numbers + at, rounded(grad[v], grad[v + 1]));
        }
    }
}

struct Pass {
    const Number *q, *k, *v, *out, *d_out;
    const float* logsumexp;
    Number *d_q, *d_k, *d_v;
};

void load_queries(const Sizes& sizes, const Document& document, int64_t head, int64_t block,
                  const Pass& pass, Queries& to) {
    const int64_t count = document.rows_of(block), first = document.first + block * kSide;
    const int64_t from = sizes.queries.at(first, head), stride = sizes.queries.stride();
    LeftBlock rows;
    load_rows(pass.q + from, stride, count, rows);
    pack_transposed(rows, to.transposed);
    pack_rows(rows, to.rows);
    load_rows(pass.d_out + from, stride, count, rows);
    pack_transposed(rows, to.grads_transposed);
    pack_rows(rows, to.grads_rows);
    for (int64_t row = 0; row < kSide; ++row) {
        const bool is_there = row < count;
        to.logsumexp[row] = is_there ? pass.logsumexp[head * sizes.tokens + first + row] : INFINITY;
        to.deltas[row] = is_there ? dot(pass.out + from + row * stride,
                                        pass.d_out + from + row * stride)
                                  : 0.0f;
    }
    std::memset(&to.grads, 0, sizeof to.grads);
}

void store_query_grads(const Sizes& sizes, const Document& document, int64_t head, int64_t block,
                       const FloatBlock& transposed, Number* d_q) {
    FloatBlock rows;
    transpose(transposed, rows);
    const int64_t to = sizes.queries.at(document.first + block * kSide, head);
    store_rows(rows, kScale, document.rows_of(block), d_q + to, sizes.queries.stride());
}

struct Keys {
    LeftBlock keys, transposed, values;  // [keys, dims], [dims, keys], [keys, dims]
    FloatBlock key_grads, value_grads;
};

void load_keys(const Sizes& sizes, const Document& document, int64_t head, int64_t block,
               const Pass& pass, Keys& to) {
    const int64_t from = sizes.keys.at(document.first + block * kSide, head);
    const int64_t count = document.rows_of(block), stride = sizes.keys.stride();
    load_rows(pass.k + from, stride, count, to.keys);
    load_rows(pass.v + from, stride, count, to.values);
    transpose(to.keys, to.transposed);
}

void store_key_grads(const Sizes& sizes, const Document& document, int64_t head, int64_t block,
                     const Keys& from, const Pass& pass) {
    const int64_t to = sizes.keys.at(document.first + block * kSide, head);
    const int64_t count = document.rows_of(block), stride = sizes.keys.stride();
    store_rows(from.key_grads, kScale, count, pass.d_k + to, stride);
    store_rows(from.value_grads, 1.0f, count, pass.d_v + to, stride);
}

void add_grads(Keys& keys, Queries& queries, bool diagonal) {
    FloatBlock scores, by_weight;
    LeftBlock weights, grads;
    RightBlock grad_rows;
    multiply<false>(keys.keys, queries.transposed, scores);
    multiply<false>(keys.values, queries.grads_transposed, by_weight);
    weights_and_grads(scores, by_weight, diagonal, queries, weights, grads);
    pack_rows(grads, grad_rows);
    multiply<true>(weights, queries.grads_rows, keys.value_grads);
    multiply<true>(grads, queries.rows, keys.key_grads);
    multiply<true>(keys.transposed, grad_rows, queries.grads);
}

void attend_backward(const Sizes& sizes, const Document& document, int64_t key_head,
                     const Pass& pass) {
    const TileRegisters registers;
    const int64_t blocks = blocks_of(document.length), group = sizes.group();
    std::vector<Keys> keys(blocks);
    std::vector<Queries> queries(blocks);
    for (int64_t b = 0; b < blocks; ++b) load_keys(sizes, document, key_head, b, pass, keys[b]);
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
        for (int64_t b = 0; b < blocks; ++b) {
            load_queries(sizes, document, head, b, pass, queries[b]);
        }
        for (int64_t j = 0; j < blocks; ++j) {
            for (int64_t i = j; i < blocks; ++i) add_grads(keys[j], queries[i], i == j);
        }
        for (int64_t b = 0; b < blocks; ++b) {
            store_query_grads(sizes, document, head, b, queries[b].grads, pass.d_q);
        }
    }
    for (int64_t b = 0; b < blocks; ++b) {
        store_key_grads(sizes, document, key_head, b, keys[b], pass);
    }
}

template <class Do>
void for_each_head(const Sizes& sizes, const int64_t* starts, int64_t documents, int32_t threads,
                   const Do& does) {
    const int64_t units = documents * sizes.keys.heads;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t unit = 0; unit < units; ++unit) {
        const int64_t d = unit / sizes.keys.heads;
        does(Document{starts[d], starts[d + 1] - starts[d]}, unit % sizes.keys.heads);
    }
}

}  // namespace

extern "C" {

// Ask Linux for the tile registers; 0 when it grants them.
int32_t attention_prepare() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return static_cast<int32_t>(syscall(SYS_arch_prctl, kRequestPermission, kTileData));
}

// q, out [tokens, query_heads, 64] and k, v [tokens, key_heads, 64] in bfloat16; logsumexp
// [query_heads, tokens]. Document d has the tokens from starts[d] to starts[d + 1].
void attention_forward(const Number* q, const Number* k, const Number* v, const int64_t* starts,
                       int64_t documents, int64_t query_heads, int64_t key_heads, int32_t threads,
                       Number* out, float* logsumexp) {
    const Sizes sizes{starts[documents], {query_heads}, {key_heads}};
    for_each_head(sizes, starts, documents, threads, [&](const Document& document, int64_t head) {
        attend(sizes, document, head, q, k, v, out, logsumexp);
    });
}

// d_*: the grads of the loss, shaped as what they belong to.
void attention_backward(const Number* q, const Number* k, const Number* v, const Number* out,
                        const float* logsumexp, const Number* d_out, const int64_t* starts,
                        int64_t documents, int64_t query_heads, int64_t key_heads, int32_t threads,
                        Number* d_q, Number* d_k, Number* d_v) {
    const Sizes sizes{starts[documents], {query_heads}, {key_heads}};
    const Pass pass{q, k, v, out, d_out, logsumexp, d_q, d_k, d_v};
    for_each_head(sizes, starts, documents, threads, [&](const Document& document, int64_t head) {
        attend_backward(sizes, document, head, pass);
    });
}
}
