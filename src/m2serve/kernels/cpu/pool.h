// One pool of threads for every operation. A thread without work spins for about 50 us, so that the
// next of a step's hundreds of jobs finds it awake, and then sleeps, so that shared cores are free.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace m2 {

constexpr int kMaxThreads = 128;

// The caller counts as one of them. Clamped to 1..kMaxThreads. Not to be called from a chunk.
void set_num_threads(int num_threads);
int num_threads();

// run(context, chunk, thread) once for every chunk in 0..num_chunks, on the caller and the pool,
// chunks handed out one by one in order; returns when all are done. `thread` is 0..num_threads(),
// 0 for the caller, and no two chunks run at once with the same one. A sleeping or late thread is
// not waited for. Called from inside a chunk it runs on that thread alone, with its number. Calls
// from several threads take turns. `run` must not throw.
void parallel_for(int64_t num_chunks, void (*run)(void* context, int64_t chunk, int thread),
                  void* context);

// run(chunk, thread) of a lambda.
template <class Run>
void parallel_for(int64_t num_chunks, Run&& run) {
    using Body = std::remove_reference_t<Run>;
    parallel_for(
        num_chunks,
        [](void* context, int64_t chunk, int thread) {
            (*static_cast<Body*>(context))(chunk, thread);
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(run))));
}

}  // namespace m2
