#include "decoder.h"

#include <algorithm>
#include <chrono>

#include "guarded.h"
#include "pool.h"

namespace m2 {

Decoder::Decoder(Step& step, const m2_model& model, const m2_kv_cache& cache)
    : step_(step), model_(model), cache_(cache), thread_([this] { work(); }) {}

Decoder::~Decoder() {
    drain();
    stop_.store(true);
    submitted_.fetch_add(1);
    submitted_.notify_one();
    thread_.join();
}

void Decoder::submit(const m2_decode& decode) {
    decodes_[submitted_.load(std::memory_order_relaxed) % kPlaces] = decode;
    submitted_.fetch_add(1, std::memory_order_release);
    submitted_.notify_one();
}

Decoder::Outcome Decoder::wait() {
    for (uint32_t seen; (seen = finished_.load(std::memory_order_acquire)) == waited_;) {
        finished_.wait(seen, std::memory_order_acquire);
    }
    return outcomes_[waited_++ % kPlaces];
}

void Decoder::drain() {
    while (waited_ != submitted_.load(std::memory_order_relaxed)) wait();
}

void Decoder::work() {
    for (uint32_t next = 0;; ++next) {
        while (submitted_.load(std::memory_order_acquire) == next) {
            submitted_.wait(next, std::memory_order_acquire);
        }
        if (stop_.load()) return;
        const auto start = std::chrono::steady_clock::now();
        const int failed = guarded([&] { run(decodes_[next % kPlaces]); });
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        outcomes_[next % kPlaces] = {failed, spent.count()};
        finished_.fetch_add(1, std::memory_order_release);
        finished_.notify_one();
    }
}

void Decoder::run(m2_decode& decode) {
    const KeptSeats kept;
    const int64_t num_rows = decode.batch.num_tokens;
    token_ids_.assign(decode.batch.token_ids, decode.batch.token_ids + num_rows);
    for (int64_t row = 0; row < num_rows; ++row) {
        // A row that failed has no token; what becomes of it no longer matters.
        if (decode.sources[row] >= 0) {
            token_ids_[row] = std::max<int64_t>(decode.previous[decode.sources[row]], 0);
        }
    }
    decode.batch.token_ids = token_ids_.data();
    const int64_t stride = model_.lm_head.rows;
    hidden_.resize(static_cast<size_t>(num_rows * model_.hidden_size));
    logits_.resize(static_cast<size_t>(num_rows * stride));
    step_.forward(model_, cache_, decode.batch, hidden_.data());
    step_.head(model_, hidden_.data(), num_rows, logits_.data());
    parallel_for(num_rows, [&](int64_t row, int) {
        decode.chosen[row] =
            choose_token(logits_.data() + row * stride, decode.vocab, decode.choices[row]);
    });
}

}  // namespace m2

#pragma GCC visibility push(default)
extern "C" {

// Null without memory or a thread. Step, model and cache have to outlive it.
void* m2_decoder_new(void* step, const m2_model* model, const m2_kv_cache* cache) {
    try {
        return new m2::Decoder(*static_cast<m2::Step*>(step), *model, *cache);
    } catch (...) {
        return nullptr;
    }
}

void m2_decoder_free(void* decoder) { delete static_cast<m2::Decoder*>(decoder); }

void m2_decode_submit(void* decoder, const m2_decode* decode) {
    static_cast<m2::Decoder*>(decoder)->submit(*decode);
}

// 0, or 1 when there was no memory; the seconds that the step has taken.
int m2_decode_wait(void* decoder, double* seconds) {
    const auto outcome = static_cast<m2::Decoder*>(decoder)->wait();
    *seconds = outcome.seconds;
    return outcome.failed;
}

void m2_decode_drain(void* decoder) { static_cast<m2::Decoder*>(decoder)->drain(); }

}  // extern "C"
#pragma GCC visibility pop
