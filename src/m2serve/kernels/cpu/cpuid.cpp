#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "types.h"

#ifdef M2_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"
#endif

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

#ifdef M2_HAS_AMX
// The processor has tiles of bfloat16, and the kernel lets this process keep them.
bool has_amx() {
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    constexpr unsigned long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

const Kernels* choose() {
    const char* forced = std::getenv("M2_CPU_ISA");
    const auto allowed = [forced](const char* name) {
        return !forced || std::strcmp(forced, name) == 0;
    };
#ifdef M2_HAS_AMX
    if (allowed("amx") && has_avx512() && has_amx()) return amx_kernels();
#endif
    if (allowed("avx512") && has_avx512()) return avx512_kernels();
    if (allowed("avx2") && has_avx2()) return avx2_kernels();
    return nullptr;
}

}  // namespace

#ifdef M2_HAS_AMX
const Kernels* amx_kernels() {
    static const Kernels kernels = [] {
        Kernels all = *avx512_kernels();
        all.name = "amx";
        all.tiles_from = kAmxKernels.tiles_from;
        all.turned_from = kAmxKernels.turned_from;
        all.prepare_row = kAmxKernels.prepare_row;
        all.matmul = kAmxKernels.matmul;
        all.scratch_bytes = std::max(all.scratch_bytes, kAmxKernels.scratch_bytes);
        all.add_matmul = kAmxKernels.add_matmul;
        all.gate_up = kAmxKernels.gate_up;
        all.gate_up_scratch_bytes = kAmxKernels.gate_up_scratch_bytes;
        all.prepare_slab = kAmxKernels.prepare_slab;
        return all;
    }();
    return &kernels;
}
#endif

const Kernels* best_kernels() {
    static const Kernels* const chosen = choose();
    return chosen;
}

}  // namespace m2
