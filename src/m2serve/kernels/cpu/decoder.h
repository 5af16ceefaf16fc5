// Decode steps one after the other on a thread of their own: the next begins when the last token of
// one is chosen, whatever the thread that asks for them does meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "sample.h"
#include "step.h"
#include "workspace.h"

extern "C" {

// One token a sequence. A row's token is the one that the step before chose in its row sources[r],
// `previous` being that step's `chosen`; where sources[r] is -1 it stands in the batch. What is
// chosen from the first `vocab` logits of every row goes to `chosen`, -1 as in m2_choose_tokens.
struct m2_decode {
    m2_batch batch;
    const int64_t* sources;
    const int64_t* previous;
    const m2_choice* choices;
    int64_t vocab;
    int64_t* chosen;
};

}  // extern "C"

namespace m2 {

// At most two steps are on their way. The number of threads stays while one runs. Model, cache, and what a step points to have to stay until it
// is waited for. While one is on its way nobody else may use the m2::Step.
class Decoder {
  public:
    // Throws std::system_error when the system gives no thread.
    Decoder(Step& step, const m2_model& model, const m2_kv_cache& cache);
    // Waits for what is on its way.
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;

    void submit(const m2_decode& decode);

    struct Outcome {
        int failed;  // 1 when there was no memory
        double seconds;
    };
    // Of the oldest step not yet waited for.
    Outcome wait();
    // Waits for every step; nobody wants to know what became of them.
    void drain();

  private:
    static constexpr uint32_t kPlaces = 2;

    void work();
    void run(m2_decode& decode);

    Step& step_;
    const m2_model& model_;
    const m2_kv_cache& cache_;
    m2_decode decodes_[kPlaces];
    Outcome outcomes_[kPlaces];
    std::vector<int64_t> token_ids_;
    AlignedFloats hidden_, logits_;
    uint32_t waited_ = 0;
    std::atomic<bool> stop_{false};
    alignas(64) std::atomic<uint32_t> submitted_{0};
    alignas(64) std::atomic<uint32_t> finished_{0};
    std::thread thread_;  // last: it uses all others
};

}  // namespace m2
