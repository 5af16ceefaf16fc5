"""One in-memory representation per storage format, bit for bit what the file holds.

Letters: *B leading batch dims (none for an attention projection; [E, 2] for the stacked w1 and w3
of all experts, [E] for w2), N output rows, K input columns. Four-bit codes are two per byte along
K, the low nibble is the even k, whatever order the file used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DenseWeight:
    """BF16, F16 or F32 as stored."""

    weight: torch.Tensor  # [*B, N, K]


@dataclass(frozen=True)
class Fp8BlockWeight:
    """W = weight * scale[n // block_n, k // block_k] (the file calls it weight_scale_inv)."""

    weight: torch.Tensor  # float8_e4m3fn [*B, N, K]
    scale: torch.Tensor  # float32 [*B, ceil(N / block_n), ceil(K / block_k)]
    block_size: tuple[int, int] = (128, 128)


@dataclass(frozen=True)
class Nvfp4Weight:
    """W = e2m1(code) * scale[n, k // 16] * global_scale.

    `global_scale` is always the multiplier (ModelOpt's convention); compressed-tensors stores the
    divisor, and 1 / divisor is taken in float32 at load. `input_scale` likewise, None if W4A16.
    """

    packed: torch.Tensor  # uint8 [*B, N, K / 2]
    scale: torch.Tensor  # float8_e4m3fn [*B, N, K / 16]
    global_scale: torch.Tensor  # float32 [*B]
    input_scale: torch.Tensor | None = None  # float32 [*B]


@dataclass(frozen=True)
class Mxfp4Weight:
    """W = e2m1(code) * 2^(scale[n, k // 32] - 127)."""

    packed: torch.Tensor  # uint8 [*B, N, K / 2]
    scale: torch.Tensor  # uint8 (E8M0) [*B, N, K / 32]


@dataclass(frozen=True)
class Int4Weight:
    """W = (code - zero_point) * scale, code and zero_point in 0..15; zero_point None means 8."""

    packed: torch.Tensor  # uint8 [*B, N, K / 2]
    scale: torch.Tensor  # bf16, f16 or f32 as stored [*B, N, K / group_size]
    zero_point: torch.Tensor | None  # uint8 [*B, N, K / group_size]
    group_size: int


@dataclass(frozen=True)
class Int8Weight:
    """W = weight * scale[n]. `static_input` is kept when the file fixes the activation scale."""

    weight: torch.Tensor  # int8 [*B, N, K]
    scale: torch.Tensor  # bf16, f16 or f32 as stored [*B, N]
    static_input: StaticInput | None = None


@dataclass(frozen=True)
class StaticInput:
    """Ascend W8A8: xq = round(x / scale) + offset; y = (xq Wqᵀ + quant_bias) * deq_scale."""

    scale: torch.Tensor  # float32 [*B]
    offset: torch.Tensor  # float32 [*B]
    quant_bias: torch.Tensor  # int32 [*B, N]
    deq_scale: torch.Tensor  # float32 [*B, N]


QuantizedWeight = Fp8BlockWeight | Nvfp4Weight | Mxfp4Weight | Int4Weight | Int8Weight
Weight = DenseWeight | QuantizedWeight
