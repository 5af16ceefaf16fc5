// Memory that operations reuse from call to call: every thread has its own, which only grows.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace m2 {

class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    // `bytes` aligned to 64, uninitialised, valid until the next call. Throws std::bad_alloc.
    void* get(int64_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = (bytes + 4095) / 4096 * 4096;
            memory_ = std::aligned_alloc(64, static_cast<size_t>(size_));
            if (!memory_) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return memory_;
    }

private:
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace m2
