// Checks of cpu/split.h and cpu/pool.cpp, which Python cannot reach:
//   g++ -std=c++20 -pthread -I src/m2serve/kernels/cpu THIS src/m2serve/kernels/cpu/pool.cpp
// Exits with 1 and a line for the first thing that is wrong. scripts/sanitize.sh runs it under the
// thread sanitizer, too.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

using namespace m2;

void check(bool holds, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
    if (holds) return;
    std::printf("%s: %lld %lld %lld\n", what, static_cast<long long>(a), static_cast<long long>(b),
                static_cast<long long>(c));
    std::exit(1);
}

Seating even_seating(int num_threads, int num_nodes) {
    Seating seats;
    seats.num_nodes = num_nodes;
    for (int node = 0; node <= num_nodes; ++node) seats.first[node] = num_threads * node / num_nodes;
    return seats;
}

// Every row once, in order; whole cache lines and work for every thread where there are as many.
void check_split(int64_t rows, int64_t matrices, const Seating& seats) {
    const int threads = seats.num_threads();
    const int64_t block = rows_per_chunk(rows * matrices, threads);
    int64_t next = 0, chunks = 0;
    for (int node = 0; node < seats.num_nodes; ++node) {
        const Rows own = rows_of_node(rows, seats, node);
        check(own.begin == next && own.end >= own.begin, "rows of a node", rows, node, own.begin);
        for (int64_t i = 0; i < num_chunks(own, block); ++i, ++chunks) {
            const Rows chunk = chunk_of(own, block, i);
            check(chunk.begin == next && chunk.end > chunk.begin, "rows lost", rows, node, i);
            check(chunk.begin % kLeastRows == 0, "a tile is cut", rows, threads, chunk.begin);
            if (rows * matrices >= kLineRows * threads && rows >= kLineRows * seats.num_nodes) {
                check(chunk.begin % kLineRows == 0, "a line is shared", rows, threads, chunk.begin);
            }
            next = chunk.end;
        }
        const int64_t share = rows * (seats.first[node + 1] - seats.first[node]) / threads;
        check(std::abs(own.end - own.begin - share) <= kLineRows, "uneven nodes", rows, node);
    }
    check(next == rows, "rows lost at the end", rows, threads, next);
    const int64_t units = rows * matrices / kLeastRows;
    check(chunks * matrices >= std::min<int64_t>(threads, units), "threads without work", rows,
          threads, chunks);
    check(block <= kMostRows, "a chunk is too large", rows, threads, block);
}

void check_splits() {
    for (const int threads : {1, 2, 3, 7, 64, 96, 128}) {
        for (const int nodes : {1, 2, 3, 8}) {
            if (nodes > threads) continue;
            const Seating seats = even_seating(threads, nodes);
            // MiniMax-M2.5: eight experts' gates, down, q, k, o, router, head; then odd ones.
            check_split(1536, 8, seats);
            for (const int64_t rows : {3072, 6144, 1024, 256, 200064, 1, 2, 3, 4, 5, 15, 16, 17, 77,
                                       401, 1000, 4097}) {
                check_split(rows, 1, seats);
            }
        }
    }
}

// A job of so many chunks on every node, each of which has to run exactly once, on a thread of its
// own number. The counts are no atomics, so that a job that ends early is a data race.
void check_job(const std::vector<int64_t>& counts, bool stays, const std::vector<int32_t>& nodes) {
    std::vector<std::vector<int>> runs;
    for (const int64_t count : counts) runs.emplace_back(static_cast<size_t>(count), 0);
    std::vector<int> busy(nodes.size(), 0);
    std::atomic<int> strays{0};
    Seating seats;
    seats.num_nodes = static_cast<int>(counts.size());
    parallel_for_nodes(
        seats, counts.data(),
        [&](int node, int64_t chunk, int thread) {
            if (busy[static_cast<size_t>(thread)]++ != 0) ++strays;
            ++runs[static_cast<size_t>(node)][static_cast<size_t>(chunk)];
            if (stays && nodes[static_cast<size_t>(thread)] != node) ++strays;
            int inner = 0;
            parallel_for(3, [&](int64_t, int same) { inner += same == thread; });
            if (inner != 3) ++strays;
            --busy[static_cast<size_t>(thread)];
        },
        stays);
    check(strays == 0, "two chunks on one thread, or a chunk on a foreign node", strays);
    for (const auto& node : runs) {
        for (const int count : node) check(count == 1, "a chunk did not run once", count);
    }
}

void check_pool(int num_threads, int num_nodes) {
    const Seating seats = even_seating(num_threads, num_nodes);
    const std::vector<int32_t> no_cpus(static_cast<size_t>(num_nodes), 0);
    std::vector<int32_t> threads, nodes;
    for (int node = 0; node < num_nodes; ++node) {
        threads.push_back(seats.first[node + 1] - seats.first[node]);
        nodes.insert(nodes.end(), static_cast<size_t>(threads.back()), node);
    }
    seat_threads(num_nodes, threads.data(), no_cpus.data(), nullptr);
    check(seating().num_nodes == num_nodes && m2::num_threads() == num_threads, "seating");
    for (int round = 0; round < 60; ++round) {
        std::vector<int64_t> counts;
        for (int node = 0; node < num_nodes; ++node) counts.push_back((round * 7 + node * 5) % 23);
        // One chunk alone runs on the caller.
        int64_t total = 0;
        for (const int64_t count : counts) total += count;
        const bool stays = round % 2 == 1 && total != 1 && num_threads > 1;
        check_job(counts, stays, nodes);
        if (round % 10 == 9) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::vector<int> seen(static_cast<size_t>(round * 3), 0);
        parallel_for(round * 3, [&](int64_t chunk, int) { ++seen[static_cast<size_t>(chunk)]; });
        for (const int count : seen) check(count == 1, "an even job lost a chunk", round);
    }
}

// A chunk that throws: the caller hears of it, the others have run, and the next job is as any.
void check_failures() {
    for (const int threads : {1, 3}) {
        set_num_threads(threads);
        for (int round = 0; round < 50; ++round) {
            std::atomic<int> runs{0};
            bool heard = false;
            try {
                parallel_for(20, [&](int64_t chunk, int) {
                    ++runs;
                    if (chunk % 7 == round % 7) throw std::bad_alloc();
                });
            } catch (const std::bad_alloc&) {
                heard = true;
            }
            check(heard && runs == 20, "a failure is lost, or chunks behind it", threads, runs);
            check_job({9}, false, std::vector<int32_t>(static_cast<size_t>(threads), 0));
        }
    }
}

void check_callers_take_turns() {
    set_num_threads(3);
    const auto work = [] {
        for (int i = 0; i < 40; ++i) check_job({9}, false, {0, 0, 0});
    };
    std::thread one(work), other(work);
    one.join();
    other.join();
}

void check_binding() {
    cpu_set_t mine;
    check(pthread_getaffinity_np(pthread_self(), sizeof(mine), &mine) == 0, "affinity");
    int first = 0;
    while (!CPU_ISSET(first, &mine)) ++first;
    const std::vector<int32_t> threads{2, 2}, num_cpus{1, 1}, cpus{first, first};
    const std::vector<int32_t> nodes{0, 0, 1, 1};
    seat_threads(2, threads.data(), num_cpus.data(), cpus.data());
    check(seating().num_nodes == 2, "binding to a processor of ours");
    {
        const BoundCaller bound;
        cpu_set_t now;
        pthread_getaffinity_np(pthread_self(), sizeof(now), &now);
        check(CPU_COUNT(&now) == 1 && CPU_ISSET(first, &now), "the caller is bound");
    }
    cpu_set_t after;
    pthread_getaffinity_np(pthread_self(), sizeof(after), &after);
    check(CPU_EQUAL(&mine, &after), "the caller is free again");
    check_job({5, 8}, true, nodes);
    // No machine has this one: the threads are free, and the same request changes nothing.
    const std::vector<int32_t> denied(2, CPU_SETSIZE - 1);
    seat_threads(2, threads.data(), num_cpus.data(), denied.data());
    check(!seating().has_places && m2::num_threads() == 4, "denied");
    const Seating* before = &seating();
    seat_threads(2, threads.data(), num_cpus.data(), denied.data());
    check(before == &seating(), "denied again");
    const int shares = seating().num_nodes;
    check_job(std::vector<int64_t>(static_cast<size_t>(shares), 5), false, {0, 1, 2, 3});
}

void check_even_seats() {
    for (const int count : {1, 2, 3, 7, 8, 9, 33, 128}) {
        set_num_threads(count);
        const Seating& seats = seating();
        check(!seats.has_places && seats.num_threads() == count, "all threads are seated");
        check(seats.num_nodes == std::min(count, kMostShares), "a share for each, of eight");
        for (int share = 0; share < seats.num_nodes; ++share) {
            const int size = seats.first[share + 1] - seats.first[share];
            check(size == count / seats.num_nodes || size == count / seats.num_nodes + 1, "evenly");
            check(seats.node_of(seats.first[share]) == share, "who begins a share is of it");
        }
        const Seating* before = &seats;
        set_num_threads(count);
        check(before == &seating(), "the same again changes nothing");
    }
}

// Who keeps the seats meets no thread that was not there when it took them.
void check_kept_seats() {
    std::atomic<bool> is_over{false};
    std::thread other([&] {
        for (int threads = 1; !is_over.load(); threads = threads % 5 + 1) set_num_threads(threads);
    });
    for (int i = 0; i < 200; ++i) {
        const KeptSeats kept;
        const int threads = num_threads();
        for (int job = 0; job < 5; ++job) {
            parallel_for(64, [&](int64_t, int thread) {
                check(thread < threads, "a new thread while seats are kept", thread, threads);
            });
            check(num_threads() == threads, "kept seats changed", num_threads(), threads);
        }
    }
    is_over.store(true);
    other.join();
}

}  // namespace

int main() {
    check_splits();
    for (const auto& [threads, nodes] : {std::pair{1, 1}, {2, 1}, {5, 1}, {2, 2}, {6, 3}, {1, 1}}) {
        check_pool(threads, nodes);
    }
    check_failures();
    check_callers_take_turns();
    check_binding();
    check_even_seats();
    check_kept_seats();
    std::puts("ok");
    return 0;
}
