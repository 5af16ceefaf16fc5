// The kernels for AMX with bfloat16: those of AVX-512, and the tile registers for many rows of
// activations, with BF16 weights for three or more.
#define M2_ISA amx
#define M2_HAS_BF16_DOT
#include "simd_avx512.h"
// after simd_avx512.h
#include <algorithm>

#include "amx.h"
#include "tiles_gate_up.h"
#include "tiles_matmul.h"

namespace m2 {
namespace M2_ISA {
namespace {

// From so many rows a matrix on the tiles are faster than the vectors.
constexpr int64_t kTilesFrom = 16, kTurnedFrom = 3;

void prepare_row(const Matrix& w, const Activations& x, int64_t row, const float* from) {
    if (x.kind != ActivationKind::kTiles) return avx512_kernels()->prepare_row(w, x, row, from);
    auto* to = static_cast<uint16_t*>(x.values) + row * x.padded;
    for (int64_t k = 0; k < x.padded; k += kRegisterColumns) {
        const auto half = [&](int64_t at) {
            const int64_t left = std::clamp<int64_t>(x.columns - at, 0, kLanes);
            return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1), from + at);
        };
        store_bytes(to + k, row_of_floats(half(k), half(k + kLanes)));
    }
}

void matmul(const Matrix& w, int64_t n0, int64_t n1, const Activations& x, const int32_t* tokens,
            int64_t num_tokens, float* c, int64_t ldc, void* scratch) {
    if (!is_for_tiles(x.kind)) {
        return avx512_kernels()->matmul(w, n0, n1, x, tokens, num_tokens, c, ldc, scratch);
    }
    tiled_matmul({w, n0, n1, x, tokens, num_tokens, c, ldc, scratch});
}

void add_matmul(const Matrix& w, int64_t n0, int64_t n1, const Activations& x,
                const int32_t* tokens, int64_t num_tokens, const AddTo& to, void* scratch) {
    tiled_matmul({w, n0, n1, x, tokens, num_tokens, nullptr, 0, scratch, to});
}

void gate_up(const Matrix& w1, const Matrix& w3, int64_t n0, int64_t n1, const Activations& x,
             const int32_t* tokens, int64_t num_tokens, const Activations& hidden, void* scratch) {
    tiled_gate_up({w1, n0, n1, x, tokens, num_tokens, nullptr, 0, scratch},
                  {w3, n0, n1, x, tokens, num_tokens, nullptr, 0, scratch}, hidden);
}

}  // namespace
}  // namespace M2_ISA

constinit const AmxKernels kAmxKernels{
    M2_ISA::kTilesFrom, M2_ISA::kTurnedFrom, M2_ISA::prepare_row, M2_ISA::matmul,
    sizeof(M2_ISA::TileScratch), M2_ISA::add_matmul, M2_ISA::gate_up,
    M2_ISA::gate_up_scratch_bytes, M2_ISA::prepare_slab};
}  // namespace m2
