// Weights that will be expanded next, asked for a few cache lines at a time while what is expanded
// already is multiplied.
#pragma once

#include <cstdint>

namespace m2::M2_ISA {
namespace {

constexpr int64_t kCacheLine = 64;

class Ahead {
  public:
    // `rows` pieces of `bytes`, `stride` apart; at most twice.
    void add(const uint8_t* first, int64_t rows, int64_t bytes, int64_t stride) {
        const int64_t lines = (bytes + kCacheLine - 1) / kCacheLine;
        if (rows * lines > 0) parts_[count_++] = {first, lines, lines, rows * lines, stride};
    }
    // How many lines a step are enough for all of them in `steps` steps.
    int64_t lines_a_step(int64_t steps) const {
        int64_t all = 0;
        for (int i = 0; i < count_; ++i) all += parts_[i].left;
        return steps > 0 ? (all + steps - 1) / steps : 0;
    }
    // Into the second cache: the first is full of what is multiplied now.
    void ask(int64_t lines) {
        for (; lines > 0 && now_ < count_; --lines) {
            Part& part = parts_[now_];
            __builtin_prefetch(part.at, 0, 2);
            part.at += kCacheLine;
            if (--part.left_in_row == 0) {
                part.at += part.stride - part.lines * kCacheLine;
                part.left_in_row = part.lines;
            }
            if (--part.left == 0) ++now_;
        }
    }

  private:
    struct Part {
        const uint8_t* at;
        int64_t lines, left_in_row, left, stride;
    };
    Part parts_[2];
    int count_ = 0, now_ = 0;
};

}  // namespace
}  // namespace m2::M2_ISA
