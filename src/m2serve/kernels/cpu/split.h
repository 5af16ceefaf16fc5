// How the rows of a product are shared by the threads, and which rows belong to which share.
// Pure: the pool's seating is an argument.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace m2 {

constexpr int kMaxNodes = 64;

// The threads in groups, each of which has its own part of every job first: those of a NUMA node, or
// where all memory is near, a few of them (even_seats). Threads are numbered node after node: those
// of a node are first[node]..first[node + 1].
struct Seating {
    int num_nodes = 1;
    int first[kMaxNodes + 1] = {0, 1};
    bool has_places = false;  // the nodes are places of memory

    int num_threads() const { return first[num_nodes]; }
    // The last one's for threads beyond them.
    int node_of(int thread) const {
        int node = 0;
        while (node + 1 < num_nodes && first[node + 1] <= thread) ++node;
        return node;
    }
    bool operator==(const Seating& other) const {
        return num_nodes == other.num_nodes && has_places == other.has_places &&
               std::equal(first, first + num_nodes + 1, other.first);
    }
};

struct Rows {
    int64_t begin, end;
};

// A cache line of results. Chunks of whole lines are written by one thread each.
constexpr int64_t kLineRows = 16;
// The rows a tiled product sums together: with borders elsewhere, the order of a sum would depend on
// the number of threads.
constexpr int64_t kLeastRows = 4;
constexpr int64_t kMostRows = 256;
constexpr int64_t kChunksPerThread = 8;
// Where all memory is near. A thread that reads its own rows one after the other runs ahead of
// itself with every prefetch; more shares than this would be searched for long at a job's end.
constexpr int kMostShares = 8;

// What borders between shares are multiples of: a line, unless a share would get none.
inline int64_t row_step(int64_t rows, int64_t shares, int64_t least) {
    const int64_t each = std::clamp<int64_t>(rows / shares, least, kLineRows);
    return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(each)));
}

// Rows of one chunk of work: few enough that every thread gets `chunks` or so, a multiple of
// `least`.
inline int64_t rows_per_chunk(int64_t total_rows, int num_threads, int64_t least = kLeastRows,
                              int64_t chunks = kChunksPerThread) {
    const int64_t step = row_step(total_rows, num_threads, least);
    const int64_t rows = total_rows / (num_threads * chunks);
    return std::clamp((rows + step - 1) / step * step, step, kMostRows);
}

// The rows of a matrix that a node's threads compute first, and whose memory is best there.
inline Rows rows_of_node(int64_t rows, const Seating& seating, int node,
                         int64_t least = kLeastRows) {
    const int64_t step = row_step(rows, seating.num_nodes, least);
    const auto border = [&](int at) {
        if (at == seating.num_nodes) return rows;
        return rows * seating.first[at] / seating.num_threads() / step * step;
    };
    return {border(node), border(node + 1)};
}

inline int64_t num_chunks(Rows rows, int64_t block) {
    return (rows.end - rows.begin + block - 1) / block;
}
inline Rows chunk_of(Rows rows, int64_t block, int64_t index) {
    const int64_t begin = rows.begin + index * block;
    return {begin, std::min(begin + block, rows.end)};
}

}  // namespace m2
