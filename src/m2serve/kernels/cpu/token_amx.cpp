// The kernels of a token for AMX with bfloat16: those of AVX-512, and attention in
// the tile registers.
#define M2_ISA amx
#define M2_HAS_BF16_DOT
#include "simd_avx512.h"
// after simd_avx512.h
#include <algorithm>

#include "amx.h"
#include "attend_tiles.h"
#include "attend_token_tiles.h"

namespace m2 {
namespace M2_ISA {
namespace {

// More rows share what is made of the keys and values.
constexpr int64_t kPromptRows = 96;

void attend_in_tiles(const HeadKeys& keys, const HeadKeys& next, const QueryRows& rows,
                     void* memory) {
    switch (keys.cache.format) {
        case M2_KV_BF16: return attend_tiles_to<M2_KV_BF16>(keys, next, rows, memory);
        case M2_KV_INT8: return attend_tiles_to<M2_KV_INT8>(keys, next, rows, memory);
        case M2_KV_FP8: return attend_tiles_to<M2_KV_FP8>(keys, next, rows, memory);
        default: return;  // float32 is exact, and stays with `attend`
    }
}
void attend_token_rounded(const TokenHeads& heads, void* memory) {
    if (!attend_token_tiles(heads, memory)) avx512_token_kernels()->attend_token(heads, memory);
}
int64_t scratch_bytes(int64_t rows, int64_t heads, int64_t head_dim) {
    return std::max({avx512_token_kernels()->attend_scratch_bytes(rows, heads, head_dim),
                     tile_attention_bytes(rows, head_dim),
                     TokenTiles::bytes(heads, padded_head(head_dim))});
}

}  // namespace
}  // namespace M2_ISA

constinit const AmxTokenKernels kAmxTokenKernels{M2_ISA::kPromptRows, M2_ISA::scratch_bytes,
                                                 M2_ISA::attend_in_tiles,
                                                 M2_ISA::attend_token_rounded};
}  // namespace m2
