#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <mutex>
#include <shared_mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "seats.h"

namespace m2 {
namespace {

constexpr std::chrono::microseconds kSpin{50};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Waits for `done()`, looking at the clock only now and then; false after kSpin. `yields` where
// there are more threads than processors, so that who has work gets one.
template <class Done>
bool spin_until(const Done& done, bool yields) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            pause();
        }
        if (yields) sched_yield();
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

thread_local int this_thread = -1;  // this thread's number while it runs chunks

class Numbered {
public:
    explicit Numbered(int thread) { this_thread = thread; }
    ~Numbered() { this_thread = -1; }
    Numbered(const Numbered&) = delete;
    Numbered& operator=(const Numbered&) = delete;
};

// False when the chunk threw.
bool runs(const Job& job, int node, int64_t chunk, int thread) {
    try {
        job.run(job.context, node, chunk, thread);
        return true;
    } catch (...) {
        return false;
    }
}

// A node's part of a job. `ticket` is the job's number (upper half) and how many of these chunks
// nobody has claimed. A chunk is claimed by lowering it while it is unchanged. A job cannot end
// before all of its chunks are claimed, so whoever succeeds has read that very job, however late it
// woke.
struct alignas(64) Queue {
    std::atomic<uint64_t> ticket{0};
    std::atomic<uint32_t> num_chunks{0};
};

class Pool {
public:
    Pool() { change_seating(seats_); }

    // Of every step's every call, so without a look at the seats.
    void seat_evenly(int count) {
        if (evenly_seated_.load(std::memory_order_relaxed) != count) seat(even_seats(count), count);
    }

    void seat(const Seats& seats, int evenly = 0) {
        if (is_seated(seats, evenly)) return;
        const std::unique_lock<std::shared_mutex> changing(kept_);
        if (is_seated(seats, evenly)) return;
        const std::lock_guard<std::mutex> turn(turns_);
        stop_.store(true);
        generation_.fetch_add(1);
        generation_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
        stop_.store(false);
        seats_ = seats;
        bool bound = true;
        int thread = 0;
        for (const NodeSeats& here : seats.nodes) {
            for (int i = 0; i < here.threads; ++i, ++thread) {
                if (thread == 0) continue;
                if (!start(thread)) return change_seating(even_seats(thread));
                bound = bind(workers_.back().native_handle(), here.cpus) && bound;
            }
        }
        change_seating(bound ? seats : even_seats(thread));
    }

    void keep_seats() { kept_.lock_shared(); }
    void release_seats() { kept_.unlock_shared(); }

    const Seating& seating() const { return *seating_.load(std::memory_order_acquire); }

    // Empty unless threads are bound.
    std::vector<int> cpus_of_caller() {
        const std::lock_guard<std::mutex> turn(turns_);
        return seating().has_places ? seats_.nodes[0].cpus : std::vector<int>{};
    }

    void run(const Job& job, const int64_t* num_chunks, int num_nodes) {
        const std::lock_guard<std::mutex> turn(turns_);
        uint32_t total = 0;
        for (int node = 0; node < num_nodes; ++node) {
            total += static_cast<uint32_t>(num_chunks[node]);
        }
        if (workers_.empty() || total == 1) {
            const Numbered numbered(0);
            return run_alone(job, num_chunks, num_nodes, 0);
        }
        done_.store(0, std::memory_order_relaxed);
        run_.store(job.run, std::memory_order_relaxed);
        context_.store(job.context, std::memory_order_relaxed);
        // A seating that has changed since may have left a node without threads.
        const Seating& seats = seating();
        const bool stays = job.stays && seats.has_places && num_nodes == seats.num_nodes;
        stays_.store(stays, std::memory_order_relaxed);
        total_.store(total, std::memory_order_relaxed);
        num_nodes_.store(num_nodes, std::memory_order_relaxed);
        const uint32_t number = generation_.load(std::memory_order_relaxed) + 1;
        for (int node = 0; node < num_nodes; ++node) {
            const auto count = static_cast<uint32_t>(num_chunks[node]);
            queues_[node].num_chunks.store(count, std::memory_order_relaxed);
            queues_[node].ticket.store(static_cast<uint64_t>(number) << 32 | count,
                                       std::memory_order_release);
        }
        generation_.store(number);
        if (sleeping_.load() > 0) generation_.notify_all();
        help(0);
        wait_for(total);
        if (failed_.exchange(false)) throw std::bad_alloc();
    }

    static void run_alone(const Job& job, const int64_t* num_chunks, int num_nodes, int thread) {
        bool whole = true;
        for (int node = 0; node < num_nodes; ++node) {
            for (int64_t chunk = 0; chunk < num_chunks[node]; ++chunk) {
                whole = runs(job, node, chunk, thread) && whole;
            }
        }
        if (!whole) throw std::bad_alloc();
    }

private:
    bool is_seated(const Seats& seats, int evenly) {
        const std::lock_guard<std::mutex> turn(turns_);
        evenly_seated_.store(evenly, std::memory_order_relaxed);
        return seats == seats_;
    }

    // False where the system gives no more threads; the others do the work then.
    bool start(int thread) {
        try {
            workers_.emplace_back([=, this] { work(thread); });
            return true;
        } catch (const std::exception&) {
            return false;
        }
    }

    void change_seating(const Seats& seats) {
        const Seating next = seating_of(seats);
        // Kept for whoever still reads an old one.
        auto known = std::find(seatings_.begin(), seatings_.end(), next);
        if (known == seatings_.end()) known = seatings_.insert(known, next);
        seating_.store(&*known, std::memory_order_release);
        crowded_.store(next.num_threads() > num_processors(), std::memory_order_relaxed);
    }

    // Counts its chunks by itself and reports them once: a counter that a hundred threads change
    // after every chunk would cost as much as the chunks. A job does not end before the report, so
    // that all of them are of one job.
    void help(int thread) {
        const Numbered numbered(thread);
        uint32_t done = 0;
        const int num_nodes = num_nodes_.load(std::memory_order_relaxed);
        const int node = seating().node_of(thread);
        for (int i = 0; i < num_nodes; ++i) done += take((node + i) % num_nodes, i == 0, thread);
        if (done == 0) return;
        const uint32_t total = total_.load(std::memory_order_relaxed);
        if (done_.fetch_add(done) + done == total && thread > 0) done_.notify_one();
    }

    uint32_t take(int node, bool is_own, int thread) {
        Queue& queue = queues_[node];
        uint32_t done = 0;
        uint64_t ticket = queue.ticket.load(std::memory_order_acquire);
        while (const auto unclaimed = static_cast<uint32_t>(ticket)) {
            const Job job{run_.load(std::memory_order_relaxed),
                          context_.load(std::memory_order_relaxed),
                          stays_.load(std::memory_order_relaxed)};
            const uint32_t chunk = queue.num_chunks.load(std::memory_order_relaxed) - unclaimed;
            if (job.stays && !is_own) break;
            if (!queue.ticket.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                                    std::memory_order_acquire)) {
                continue;
            }
            if (!runs(job, node, chunk, thread)) failed_.store(true, std::memory_order_relaxed);
            ++done;
            ticket = queue.ticket.load(std::memory_order_acquire);
        }
        return done;
    }

    void wait_for(uint32_t total) {
        const auto done = [&] { return done_.load(std::memory_order_acquire) == total; };
        if (spin_until(done, crowded_.load(std::memory_order_relaxed))) return;
        for (uint32_t seen; (seen = done_.load(std::memory_order_acquire)) != total;) {
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
            if (!spin_until(changed, crowded_.load(std::memory_order_relaxed))) {
                sleeping_.fetch_add(1);
                generation_.wait(seen);
                sleeping_.fetch_sub(1);
            }
            seen = generation_.load(std::memory_order_acquire);
        }
    }

    std::shared_mutex kept_;  // taken before turns_
    std::mutex turns_;
    std::vector<std::thread> workers_;
    Seats seats_ = even_seats(1);  // as asked for
    std::deque<Seating> seatings_;
    std::atomic<const Seating*> seating_{nullptr};
    std::atomic<bool> stop_{false};
    std::atomic<bool> crowded_{false};
    std::atomic<int> evenly_seated_{0};  // the threads asked for, if that was all that was asked

    // The job; what all threads write lies on cache lines of its own.
    Queue queues_[kMaxNodes];
    alignas(64) std::atomic<void (*)(void*, int, int64_t, int)> run_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<bool> stays_{false};
    std::atomic<uint32_t> total_{0};
    std::atomic<int> num_nodes_{1};
    alignas(64) std::atomic<uint32_t> done_{0};
    std::atomic<bool> failed_{false};  // a chunk of this job
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
    pool().seat_evenly(std::clamp(num_threads, 1, kMaxThreads));
}

void seat_threads(int num_nodes, const int32_t* threads, const int32_t* num_cpus,
                  const int32_t* cpus) {
    Seats seats{{}, true};
    for (int node = 0; node < num_nodes; cpus += num_cpus[node++]) {
        seats.nodes.push_back({threads[node], {cpus, cpus + num_cpus[node]}});
    }
    pool().seat(seats);
}

int num_threads() { return seating().num_threads(); }

const Seating& seating() { return pool().seating(); }

void run_on_nodes(const Job& job, const int64_t* num_chunks, int num_nodes) {
    if (std::all_of(num_chunks, num_chunks + num_nodes, [](int64_t count) { return count <= 0; })) {
        return;
    }
    if (this_thread >= 0) return Pool::run_alone(job, num_chunks, num_nodes, this_thread);
    pool().run(job, num_chunks, num_nodes);
}

KeptSeats::KeptSeats() { pool().keep_seats(); }
KeptSeats::~KeptSeats() { pool().release_seats(); }

struct BoundCaller::Mask {
    cpu_set_t cpus;
};

BoundCaller::BoundCaller() {
    const std::vector<int> cpus = pool().cpus_of_caller();
    if (cpus.empty()) return;
    auto mask = std::make_unique<Mask>();
    if (pthread_getaffinity_np(pthread_self(), sizeof(cpu_set_t), &mask->cpus) != 0) return;
    if (bind(pthread_self(), cpus)) before_ = std::move(mask);
}

BoundCaller::~BoundCaller() {
    if (before_) pthread_setaffinity_np(pthread_self(), sizeof(cpu_set_t), &before_->cpus);
}

}  // namespace m2
