// One pool of threads for every operation. A thread without work spins for about 50 us, so that the
// next of a step's hundreds of jobs finds it awake, and then sleeps, so that shared cores are free.
//
// A job has a queue of chunks for each group of threads (Seating). A thread empties its own group's
// before it helps with another's: on a machine of several NUMA nodes rows are mostly computed beside
// the memory that place.cpp put them into, elsewhere a thread reads on where it has just read, and
// yet no thread is idle while there is work.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "split.h"

namespace m2 {

constexpr int kMaxThreads = 128;

// The caller counts as one of them. Clamped to 1..kMaxThreads, and to what the system gives; not
// bound, in at most kMostShares groups.
// Not to be called from a chunk.
void set_num_threads(int num_threads);

// threads[node] threads, at least one, on every node, bound to its num_cpus[node] processors, which
// lie node after node in `cpus`; with no processors they are not bound. The caller is thread 0, of
// node 0, and never bound. Where binding is denied, as set_num_threads. At most kMaxNodes nodes. Not
// to be called from a chunk.
void seat_threads(int num_nodes, const int32_t* threads, const int32_t* num_cpus,
                  const int32_t* cpus);

int num_threads();
// Valid for ever, but out of date after the next change.
const Seating& seating();

// While one lives, the two functions above wait before they change anything: whoever computes step
// after step on a thread of its own has buffers for as many threads as there were at its start. Not
// to be held by who calls them.
class KeptSeats {
  public:
    KeptSeats();
    ~KeptSeats();
    KeptSeats(const KeptSeats&) = delete;
    KeptSeats& operator=(const KeptSeats&) = delete;
};

// Keeps the calling thread on node 0's processors while it lives.
class BoundCaller {
  public:
    BoundCaller();
    ~BoundCaller();
    BoundCaller(const BoundCaller&) = delete;
    BoundCaller& operator=(const BoundCaller&) = delete;

  private:
    struct Mask;
    std::unique_ptr<Mask> before_;
};

struct Job {
    void (*run)(void* context, int node, int64_t chunk, int thread);
    void* context;
    bool stays;  // chunks are computed by threads of their own node only
};

// job.run once for every chunk in 0..num_chunks[node] of every node, on the caller and the pool, a
// node's chunks handed out one by one in order; returns when all are done. `thread` is
// 0..num_threads(), 0 for the caller, and no two chunks run at once with the same one. A sleeping or
// late thread is not waited for, unless the job stays. Called from inside a chunk it runs on that
// thread alone, with its number. Calls from several threads take turns. Throws std::bad_alloc when
// `run` threw anything; all other chunks have run then, too.
void run_on_nodes(const Job& job, const int64_t* num_chunks, int num_nodes);

// run(node, chunk, thread) of a lambda; `num_chunks` has an entry for every node of `seating`.
template <class Run>
void parallel_for_nodes(const Seating& seating, const int64_t* num_chunks, Run&& run,
                        bool stays = false) {
    using Body = std::remove_reference_t<Run>;
    run_on_nodes({[](void* context, int node, int64_t chunk, int thread) {
                      (*static_cast<Body*>(context))(node, chunk, thread);
                  },
                  const_cast<void*>(static_cast<const void*>(std::addressof(run))), stays},
                 num_chunks, seating.num_nodes);
}

// run(chunk, thread) for every chunk in 0..num_chunks, wherever its memory is.
template <class Run>
void parallel_for(int64_t num_chunks, Run&& run) {
    const Seating& seats = seating();
    const int64_t nodes = seats.num_nodes;
    int64_t counts[kMaxNodes];
    for (int64_t node = 0; node < nodes; ++node) {
        counts[node] = (num_chunks + nodes - 1 - node) / nodes;
    }
    parallel_for_nodes(seats, counts, [&](int node, int64_t chunk, int thread) {
        run(chunk * nodes + node, thread);
    });
}

}  // namespace m2
