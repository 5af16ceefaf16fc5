// A loop unrolled by the compiler for certain, so that arrays of vectors stay in registers.
#pragma once

#include <utility>

namespace m2::M2_ISA {
namespace {

template <int... i, class Run>
__attribute__((always_inline)) inline void each_of(std::integer_sequence<int, i...>,
                                                   const Run& run) {
    (run(std::integral_constant<int, i>{}), ...);
}
// run(0), run(1), ... run(count - 1) with constants.
template <int count, class Run>
__attribute__((always_inline)) inline void each(const Run& run) {
    each_of(std::make_integer_sequence<int, count>{}, run);
}

}  // namespace
}  // namespace m2::M2_ISA
