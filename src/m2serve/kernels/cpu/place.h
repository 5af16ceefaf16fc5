// Weights in the memory of the NUMA nodes that read them.
#pragma once

#include <cstdint>

#include "types.h"

namespace m2 {

// Moves the rows of every matrix of the weight into the memory of the node whose threads compute
// them first (rows_of_node). Addresses and contents stay as they are: a part of the weight is copied
// aside, its pages are given back to the system, and threads of each node write their rows again,
// which by Linux's first touch takes new pages from their own node. Needs no right but that to bind
// threads. Returns the bytes moved: 0 unless threads are bound to nodes, or where the memory is no
// ordinary memory of the process. Nothing else may use the weight meanwhile. Throws std::bad_alloc.
int64_t place(const m2_weight& weight);

}  // namespace m2
