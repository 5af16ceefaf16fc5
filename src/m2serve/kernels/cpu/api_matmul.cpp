// The C interface of the matrix products, for ctypes. An int is 0, or 1 when there was no memory.
// Pointers are not checked: cpu_linear.py makes them from tensors it has checked.
#include <algorithm>
#include <iterator>

#include "decoder.h"
#include "find_nan.h"
#include "guarded.h"
#include "interleave.h"
#include "linear.h"
#include "pool.h"
#include "step.h"

namespace {

// ABI of cpu_library.py.
constexpr int64_t kAbi = 4;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The instruction set in use; null where the machine has none of those there are kernels for, and
// then nothing else may be called.
const char* m2_isa() { return m2::best_kernels() ? m2::best_kernels()->name : nullptr; }

// What Python has to agree with: the interface's number and the sizes of its structures. Writes at
// most `room` numbers and returns how many there are.
int64_t m2_abi(int64_t* out, int64_t room) {
    const int64_t found[] = {kAbi,
                             sizeof(m2_weight),
                             sizeof(m2_layer),
                             sizeof(m2_model),
                             sizeof(m2_kv_cache),
                             sizeof(m2_batch),
                             sizeof(m2_decode)};
    const auto count = static_cast<int64_t>(std::size(found));
    std::copy_n(found, std::min(room, count), out);
    return count;
}

void m2_set_num_threads(int num_threads) { m2::set_num_threads(num_threads); }

void m2_seat_threads(int num_nodes, const int32_t* threads, const int32_t* num_cpus,
                     const int32_t* cpus) {
    m2::seat_threads(num_nodes, threads, num_cpus, cpus);
}

int64_t m2_find_nan(const m2_weight* weight) { return m2::find_nan(*weight); }

// weight->interleaved says whether it could be. The weight is lost when it fails.
int m2_interleave(m2_weight* weight) {
    return m2::guarded([&] { m2::interleave(*weight); });
}

int m2_linear(const m2_weight* weight, const float* x, int64_t num_rows, float* y,
              int32_t activation) {
    return m2::guarded(
        [&] { m2::linear(*weight, x, num_rows, y, static_cast<m2_activation>(activation)); });
}

// Also 2 when an id is out of range; then nothing is computed.
int m2_experts(const m2_weight* w13, const m2_weight* w2, const float* x, const float* weights,
               const int64_t* ids, int64_t num_tokens, int64_t top_k, float* y,
               int32_t activation) {
    for (int64_t i = 0; i < num_tokens * top_k; ++i) {
        if (ids[i] < 0 || ids[i] >= w2->matrices) return 2;
    }
    return m2::guarded([&] {
        m2::experts(*w13, *w2, x, weights, ids, num_tokens, top_k, y,
                    static_cast<m2_activation>(activation));
    });
}

}  // extern "C"
#pragma GCC visibility pop
