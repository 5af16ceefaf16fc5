"""What the stored bytes stand for: every storage format as float32, in plain PyTorch.

The definition of each format; fast kernels are tested against it. *B, N, K as in
checkpoint.weights. A product with a float32 global scale is rounded once.
"""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any, TypeVar

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

# E2M1: bit 3 is the sign, bits 2 and 1 the exponent, bit 0 the mantissa.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SYMMETRIC_INT4_ZERO = 8

_W = TypeVar("_W", bound=Weight)


@singledispatch
def dequantize(weight: Weight) -> torch.Tensor:
    """float32 [*B, N, K] of any Weight, on its device."""
    raise NotImplementedError(f"no definition for {type(weight).__name__}")


@dequantize.register
def _(weight: DenseWeight) -> torch.Tensor:
    return weight.weight.float()


@dequantize.register
def _(weight: Fp8BlockWeight) -> torch.Tensor:
    rows, columns = weight.weight.shape[-2:]
    block_rows, block_columns = weight.block_size
    scale = weight.scale.repeat_interleave(block_rows, -2)[..., :rows, :]
    scale = scale.repeat_interleave(block_columns, -1)[..., :columns]
    return weight.weight.float() * scale


@dequantize.register
def _(weight: Nvfp4Weight) -> torch.Tensor:
    values = _times_group_scale(e2m1(weight.packed), weight.scale.float())
    return values * weight.global_scale[..., None, None]


@dequantize.register
def _(weight: Mxfp4Weight) -> torch.Tensor:
    return _times_group_scale(e2m1(weight.packed), e8m0(weight.scale))


@dequantize.register
def _(weight: Int4Weight) -> torch.Tensor:
    codes = unpack_nibbles(weight.packed).float()
    if weight.zero_point is None:
        centred = codes - SYMMETRIC_INT4_ZERO
    else:
        centred = codes - weight.zero_point.repeat_interleave(weight.group_size, -1)
    return _times_group_scale(centred, weight.scale.float())


@dequantize.register
def _(weight: Int8Weight) -> torch.Tensor:
    return weight.weight.float() * weight.scale.float()[..., None]


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., K / 2] -> uint8 [..., K]; the low nibble is the even k."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def e2m1(packed: torch.Tensor) -> torch.Tensor:
    """float32 values of E2M1 codes, two a byte: uint8 [..., K / 2] -> [..., K]."""
    table = torch.tensor(E2M1_VALUES, device=packed.device)
    table = torch.cat([table, -table])
    return table[unpack_nibbles(packed).int()]


def e8m0(scale: torch.Tensor) -> torch.Tensor:
    """2^(byte - 127) in float32; byte 0 is a denormal, so it has no exponent to be shifted to."""
    bits = scale.int() << 23
    bits[scale == 0] = 1 << 22
    return bits.view(torch.float32)


def select(weight: _W, index: int) -> _W:
    """The weight at `index` of the first batch dim; no copy."""
    parts: dict[str, Any] = {
        part.name: value[index]
        for part in dataclasses.fields(weight)
        if isinstance(value := getattr(weight, part.name), torch.Tensor)
    }
    return dataclasses.replace(weight, **parts, **_without_static_input(weight))


def row_range(weight: _W, start: int, stop: int) -> _W:
    """Rows start to stop of a weight without batch dims; no copy.

    `start` must be a multiple of the format's row block (128 for FP8).
    """
    parts: dict[str, Any] = {
        part.name: value[start:stop]
        for part in dataclasses.fields(weight)
        if isinstance(value := getattr(weight, part.name), torch.Tensor) and value.ndim > 0
    }
    if isinstance(weight, Fp8BlockWeight):
        block_rows = weight.block_size[0]
        assert start % block_rows == 0
        parts["scale"] = weight.scale[start // block_rows : -(-stop // block_rows)]
    return dataclasses.replace(weight, **parts, **_without_static_input(weight))


def move(weight: _W, device: torch.device, dense_dtype: torch.dtype) -> _W:
    """The weight on `device`; a dense one in `dense_dtype`, the others bit for bit."""
    if isinstance(weight, DenseWeight):
        return dataclasses.replace(weight, weight=weight.weight.to(device, dense_dtype))
    parts: dict[str, Any] = {}
    for part in dataclasses.fields(weight):
        value = getattr(weight, part.name)
        if isinstance(value, torch.Tensor):
            parts[part.name] = value.to(device)
    return dataclasses.replace(weight, **parts, **_without_static_input(weight))


def _without_static_input(weight: Weight) -> dict[str, Any]:
    """Activations stay unquantised here, so a slice needs no activation scales."""
    return {"static_input": None} if isinstance(weight, Int8Weight) else {}


def _times_group_scale(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[..., K] times [..., K / g], each scale for g neighbours."""
    groups = values.unflatten(-1, (scale.shape[-1], -1))
    return (groups * scale[..., None]).flatten(-2)
