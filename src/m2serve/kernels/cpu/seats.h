// How many threads on which processors: what the pool is asked for.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <vector>

#include "split.h"

namespace m2 {

struct NodeSeats {
    int threads;
    std::vector<int> cpus;  // any, where there are none
    bool operator==(const NodeSeats&) const = default;
};
struct Seats {
    std::vector<NodeSeats> nodes;
    bool has_places;
    bool operator==(const Seats&) const = default;
};

// `count` threads where all memory is near.
inline Seats even_seats(int count) {
    const int shares = std::min(count, kMostShares);
    Seats seats{{}, false};
    for (int share = 0; share < shares; ++share) {
        seats.nodes.push_back({count * (share + 1) / shares - count * share / shares, {}});
    }
    return seats;
}

inline Seating seating_of(const Seats& seats) {
    Seating seating;
    seating.has_places = seats.has_places;
    seating.num_nodes = static_cast<int>(seats.nodes.size());
    for (int node = 0; node < seating.num_nodes; ++node) {
        const NodeSeats& here = seats.nodes[static_cast<size_t>(node)];
        seating.first[node + 1] = seating.first[node] + here.threads;
    }
    return seating;
}

// Those the calling thread may use.
inline int num_processors() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return CPU_SETSIZE;
    return CPU_COUNT(&set);
}

// False where it is denied, or the machine is larger than a cpu_set_t.
inline bool bind(pthread_t thread, const std::vector<int>& cpus) {
    if (cpus.empty()) return true;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : cpus) {
        if (cpu < 0 || cpu >= CPU_SETSIZE) return false;
        CPU_SET(cpu, &set);
    }
    return pthread_setaffinity_np(thread, sizeof(set), &set) == 0;
}

}  // namespace m2
