// What the C interface does about exceptions.
#pragma once

#include <new>

namespace m2 {

// 0, or 1 when there was no memory.
template <class Run>
int guarded(const Run& run) {
    try {
        run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace m2
