// Memory that operations reuse from call to call: every thread has its own, which only grows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace m2 {

constexpr std::align_val_t kLineBytes{64};

// Whole cache lines, so that rows of 16 floats are no other row's line.
template <class Value>
struct LineAllocator {
    using value_type = Value;
    LineAllocator() = default;
    template <class Other>
    LineAllocator(const LineAllocator<Other>&) {}
    Value* allocate(std::size_t count) {
        return static_cast<Value*>(::operator new(count * sizeof(Value), kLineBytes));
    }
    void deallocate(Value* memory, std::size_t) { ::operator delete(memory, kLineBytes); }
    bool operator==(const LineAllocator&) const = default;
};
using AlignedFloats = std::vector<float, LineAllocator<float>>;

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
