#include "pool.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

namespace m2 {
namespace {

constexpr std::chrono::microseconds kSpin{50};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Waits for `done()`, looking at the clock only now and then; false after kSpin.
template <class Done>
bool spin_until(const Done& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

thread_local int this_thread = -1;  // this thread's number while it runs chunks

struct Job {
    void (*run)(void*, int64_t, int);
    void* context;
    uint32_t num_chunks;
};

// `ticket_` is the job's number (upper half) and how many of its chunks nobody has claimed. A chunk
// is claimed by lowering it while it is unchanged. A job cannot end before all of its chunks are
// claimed, so whoever succeeds has read that very job, however late it woke.
class Pool {
public:
    void resize(int count) {
        const std::lock_guard<std::mutex> turn(turns_);
        stop_.store(true);
        generation_.fetch_add(1);
        generation_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
        stop_.store(false);
        for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { work(i); });
        size_.store(count);
    }

    int size() const { return size_.load(std::memory_order_relaxed); }

    void run(const Job& job) {
        const std::lock_guard<std::mutex> turn(turns_);
        if (workers_.empty() || job.num_chunks == 1) {
            this_thread = 0;
            for (uint32_t chunk = 0; chunk < job.num_chunks; ++chunk) {
                job.run(job.context, chunk, 0);
            }
            this_thread = -1;
            return;
        }
        done_.store(0, std::memory_order_relaxed);
        run_.store(job.run, std::memory_order_relaxed);
        context_.store(job.context, std::memory_order_relaxed);
        num_chunks_.store(job.num_chunks, std::memory_order_relaxed);
        const uint32_t number = generation_.load(std::memory_order_relaxed) + 1;
        ticket_.store(static_cast<uint64_t>(number) << 32 | job.num_chunks,
                      std::memory_order_release);
        generation_.store(number);
        if (sleeping_.load() > 0) generation_.notify_all();
        help(0);
        wait_for(job.num_chunks);
    }

private:
    void help(int thread) {
        this_thread = thread;
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (const auto unclaimed = static_cast<uint32_t>(ticket)) {
            const Job job{run_.load(std::memory_order_relaxed),
                          context_.load(std::memory_order_relaxed),
                          num_chunks_.load(std::memory_order_relaxed)};
            if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                               std::memory_order_acquire)) {
                continue;
            }
            job.run(job.context, job.num_chunks - unclaimed, thread);
            const uint32_t done = done_.fetch_add(1) + 1;
            if (done == job.num_chunks && thread > 0) done_.notify_one();
            ticket = ticket_.load(std::memory_order_acquire);
        }
        this_thread = -1;
    }

    void wait_for(uint32_t num_chunks) {
        const auto done = [&] { return done_.load(std::memory_order_acquire) == num_chunks; };
        if (spin_until(done)) return;
        for (uint32_t seen; (seen = done_.load(std::memory_order_acquire)) != num_chunks;) {
            done_.wait(seen, std::memory_order_acquire);
        }
    }

    void work(int thread) {
        uint32_t seen = generation_.load();
        while (!stop_.load(std::memory_order_relaxed)) {
            help(thread);
            const auto changed = [&] {
                return generation_.load(std::memory_order_acquire) != seen;
            };
            if (!spin_until(changed)) {
                sleeping_.fetch_add(1);
                generation_.wait(seen);
                sleeping_.fetch_sub(1);
            }
            seen = generation_.load(std::memory_order_acquire);
        }
    }

    std::mutex turns_;
    std::vector<std::thread> workers_;
    std::atomic<int> size_{1};
    std::atomic<bool> stop_{false};

    // The job; each on cache lines of its own, because all threads write them.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    std::atomic<void (*)(void*, int64_t, int)> run_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<uint32_t> num_chunks_{0};
    alignas(64) std::atomic<uint32_t> done_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<int> sleeping_{0};
};

// Never destroyed: the threads outlive whatever the process tears down at its end.
Pool& pool() {
    static Pool* const only = new Pool;
    return *only;
}

}  // namespace

void set_num_threads(int num_threads) {
    const int count = num_threads < 1 ? 1 : num_threads > kMaxThreads ? kMaxThreads : num_threads;
    if (count != pool().size()) pool().resize(count);
}

int num_threads() { return pool().size(); }

void parallel_for(int64_t num_chunks, void (*run)(void*, int64_t, int), void* context) {
    if (num_chunks <= 0) return;
    if (this_thread >= 0) {
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) run(context, chunk, this_thread);
        return;
    }
    pool().run({run, context, static_cast<uint32_t>(num_chunks)});
}

}  // namespace m2
