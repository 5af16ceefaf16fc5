#include "place.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "pool.h"
#include "prepared.h"

namespace m2 {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kHugePage = int64_t{2} << 20;
// What is aside at once.
constexpr int64_t kSlab = int64_t{256} << 20;
// Bytes and rows that one chunk copies.
constexpr int64_t kCopy = int64_t{1} << 20;

// `matrices` of `rows` rows of `stride` bytes, one after the other.
struct Array {
    uint8_t* base;
    int64_t matrices, rows, stride;
    int64_t least_rows;

    int64_t matrix_bytes() const { return rows * stride; }
};

// All of them whole pages.
struct Slab {
    uint8_t* begin;
    int64_t size;
};

void copy(uint8_t* to, const uint8_t* from, int64_t size) {
    parallel_for((size + kCopy - 1) / kCopy, [&](int64_t chunk, int) {
        const int64_t at = chunk * kCopy;
        std::memcpy(to + at, from + at, static_cast<size_t>(std::min(kCopy, size - at)));
    });
}

// Every node's threads bring back what lies in the slab of their rows.
void bring_back(const Array& array, const Slab& slab, const uint8_t* aside) {
    const Seating& seats = seating();
    const int64_t start = slab.begin - array.base;
    const int64_t first = start / array.matrix_bytes();
    const int64_t last = (start + slab.size - 1) / array.matrix_bytes();
    const int64_t block = std::max<int64_t>(1, kCopy / array.stride);
    int64_t chunks[kMaxNodes];
    for (int node = 0; node < seats.num_nodes; ++node) {
        const Rows own = rows_of_node(array.rows, seats, node, array.least_rows);
        chunks[node] = (last - first + 1) * num_chunks(own, block);
    }
    const auto bring = [&](int node, int64_t chunk, int) {
        const Rows own = rows_of_node(array.rows, seats, node, array.least_rows);
        const int64_t each = num_chunks(own, block);
        const Rows rows = chunk_of(own, block, chunk % each);
        const int64_t matrix = (first + chunk / each) * array.matrix_bytes() - start;
        const int64_t from = std::max<int64_t>(0, matrix + rows.begin * array.stride);
        const int64_t end = std::min(slab.size, matrix + rows.end * array.stride);
        if (from < end) {
            std::memcpy(slab.begin + from, aside + from, static_cast<size_t>(end - from));
        }
    };
    parallel_for_nodes(seats, chunks, bring, true);
}

uint8_t* round_up(uint8_t* address, int64_t to) {
    const auto rest = reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(to);
    return rest == 0 ? address : address + (to - static_cast<int64_t>(rest));
}

int64_t place_rows(const Array& array, Workspace& aside) {
    // Pages at the ends hold something else, too.
    uint8_t* begin = round_up(array.base, kPage);
    const int64_t whole = array.base + array.matrices * array.matrix_bytes() - begin;
    const int64_t size = whole / kPage * kPage;
    if (array.stride == 0 || size < kHugePage) return 0;
    const int64_t share = array.matrix_bytes() / seating().num_nodes;
    // A huge page is on one node. Where the kernel has none, there is nothing to turn off.
    if (share < 4 * kHugePage) madvise(begin, static_cast<size_t>(size), MADV_NOHUGEPAGE);
    for (int64_t at = 0; at < size; at += kSlab) {
        const Slab slab{begin + at, std::min(kSlab, size - at)};
        auto* copied = static_cast<uint8_t*>(aside.get(slab.size));
        copy(copied, slab.begin, slab.size);
        const bool given = madvise(slab.begin, static_cast<size_t>(slab.size), MADV_DONTNEED) == 0;
        // Also when it failed, for it may have given back a part.
        bring_back(array, slab, copied);
        if (!given) return at;
    }
    return size;
}

}  // namespace

int64_t place(const m2_weight& weight) {
    if (!seating().has_places) return 0;
    const BoundCaller bound;
    const RowBytes bytes = row_bytes(weight);
    const auto rows_at = [&](const void* base, int64_t stride) {
        auto* memory = static_cast<uint8_t*>(const_cast<void*>(base));
        return Array{memory, weight.matrices, weight.rows, stride, least_rows(weight)};
    };
    Workspace aside;
    return place_rows(rows_at(weight.codes, bytes.codes), aside) +
           place_rows(rows_at(weight.scale, bytes.scale), aside) +
           place_rows(rows_at(weight.zero_point, bytes.zero_point), aside);
}

}  // namespace m2
