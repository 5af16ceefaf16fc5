#include <cstdlib>
#include <cstring>

#include "types.h"

namespace m2 {
namespace {

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
bool has_avx512() {
#ifdef M2_EMULATE_AVX512
    return has_avx2();
#endif
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

const Kernels* choose() {
    const char* forced = std::getenv("M2_CPU_ISA");
    const auto allowed = [forced](const char* name) {
        return !forced || std::strcmp(forced, name) == 0;
    };
    if (allowed("avx512") && has_avx512()) return avx512_kernels();
    if (allowed("avx2") && has_avx2()) return avx2_kernels();
    return nullptr;
}

}  // namespace

const Kernels* best_kernels() {
    static const Kernels* const chosen = choose();
    return chosen;
}

}  // namespace m2
