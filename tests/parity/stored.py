"""Random weights in every storage format, with the values kernels get wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch

from m2serve.checkpoint.weights import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
    Weight,
)

Make = Callable[[tuple[int, ...], int, int], Weight]


def dense(dtype: torch.dtype) -> Make:
    def make(batch: tuple[int, ...], rows: int, columns: int) -> Weight:
        weight = torch.randn(*batch, rows, columns).to(dtype)
        weight[..., 0, :] *= torch.finfo(dtype).tiny / 16  # subnormal
        weight[..., 1, :] = 0
        return DenseWeight(weight)

    return make


def fp8(batch: tuple[int, ...], rows: int, columns: int) -> Weight:
    codes = bytes_of(*batch, rows, columns)
    codes[codes & 0x7F == 0x7F] = 0x7E  # NaN becomes 448
    codes[..., 0, :] &= 0x87  # subnormal
    blocks = (-(-rows // 128), -(-columns // 128))
    scale = torch.rand(*batch, *blocks)
    scale[..., 0] *= 1e-6
    scale[..., -1, -1] = 0
    return Fp8BlockWeight(codes.view(torch.float8_e4m3fn), scale)


def nvfp4(batch: tuple[int, ...], rows: int, columns: int) -> Weight:
    scale = torch.rand(*batch, rows, columns // 16) * 448
    scale[..., 0, :] = 2.0**-9  # the smallest E4M3 has
    scale[..., 1, :] = 448
    scale[..., 1:, 0] = 0
    return Nvfp4Weight(
        bytes_of(*batch, rows, columns // 2),
        scale.to(torch.float8_e4m3fn),
        torch.rand(batch) + 1e-5,
    )


def mxfp4(batch: tuple[int, ...], rows: int, columns: int) -> Weight:
    scale = torch.randint(110, 130, (*batch, rows, columns // 32), dtype=torch.uint8)
    scale[..., 0, :] = 30
    scale[..., 1, :] = 220
    return Mxfp4Weight(bytes_of(*batch, rows, columns // 2), scale)


def int4(group_size: int, scale_type: torch.dtype, zero_point: bool) -> Make:
    def make(batch: tuple[int, ...], rows: int, columns: int) -> Weight:
        groups = (*batch, rows, columns // group_size)
        scale = torch.rand(groups)
        scale[..., 0, :] = 6e4
        scale[..., 1, :] = 0
        zeros = bytes_of(*groups) & 15 if zero_point else None
        packed = bytes_of(*batch, rows, columns // 2)
        return Int4Weight(packed, scale.to(scale_type), zeros, group_size)

    return make


def int8(batch: tuple[int, ...], rows: int, columns: int) -> Weight:
    codes = bytes_of(*batch, rows, columns).view(torch.int8)
    codes[..., 0, :] = -128
    return Int8Weight(codes, torch.rand(*batch, rows).to(torch.bfloat16))


def bytes_of(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8)


# By format: how to make one, and what its columns must be a multiple of.
FORMATS: dict[str, tuple[Make, int]] = {
    "bf16": (dense(torch.bfloat16), 1),
    "f16": (dense(torch.float16), 1),
    "f32": (dense(torch.float32), 1),
    "fp8": (fp8, 1),
    "nvfp4": (nvfp4, 16),
    "mxfp4": (mxfp4, 32),
    "int4-g32": (int4(32, torch.bfloat16, False), 32),
    "int4-g128": (int4(128, torch.float16, False), 128),
    "int4-g32-zero-points": (int4(32, torch.float32, True), 32),
    "int4-g128-zero-points": (int4(128, torch.bfloat16, True), 128),
    "int8": (int8, 1),
}


def make_weight(
    format: str, rows: int, columns: int, batch: tuple[int, ...] = (), seed: int = 0
) -> Weight:
    """Columns are rounded down to what the format allows."""
    torch.manual_seed(seed)
    make, multiple = FORMATS[format]
    return make(batch, rows, columns // multiple * multiple)


def num_columns(weight: Weight) -> int:
    codes = getattr(weight, "packed", None)
    return int(weight.weight.shape[-1] if codes is None else 2 * codes.shape[-1])
