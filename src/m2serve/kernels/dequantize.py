"""What the stored bytes stand for: every storage format as float32, in plain PyTorch.

The definition of each format; fast kernels are tested against it. *B, N, K as in
checkpoint.weights. A product with a float32 global scale is rounded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache, singledispatch
from typing import Any, TypeVar

import torch

from m2serve.checkpoint.formats.nibbles import E2M1_MAGNITUDES
from m2serve.checkpoint.weights import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
    Weight,
)

E2M1_VALUES = (*E2M1_MAGNITUDES, *(-value for value in E2M1_MAGNITUDES))
INT4_VALUES = tuple(float(code) for code in range(16))
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
    block_rows, block_columns = weight.block_size
    values = e4m3(weight.weight)
    rows, columns = values.shape[-2:]
    scale = weight.scale.repeat_interleave(block_columns, -1)[..., :columns]
    num_whole = rows // block_rows
    whole, rest = values.split([num_whole * block_rows, rows % block_rows], -2)
    whole.unflatten(-2, (num_whole, block_rows)).mul_(scale[..., :num_whole, None, :])
    rest.mul_(scale[..., num_whole:, :])
    return values


@dequantize.register
def _(weight: Nvfp4Weight) -> torch.Tensor:
    values = nibble_values(weight.packed, E2M1_VALUES)
    _groups(values, weight.scale).mul_(e4m3(weight.scale)[..., None])
    return values.mul_(weight.global_scale[..., None, None])


@dequantize.register
def _(weight: Mxfp4Weight) -> torch.Tensor:
    values = nibble_values(weight.packed, E2M1_VALUES)
    _groups(values, weight.scale).mul_(e8m0(weight.scale)[..., None])
    return values


@dequantize.register
def _(weight: Int4Weight) -> torch.Tensor:
    values = nibble_values(weight.packed, INT4_VALUES)
    groups = _groups(values, weight.scale)
    if weight.zero_point is None:
        values.sub_(SYMMETRIC_INT4_ZERO)
    else:
        groups.sub_(weight.zero_point[..., None])
    groups.mul_(weight.scale[..., None])
    return values


@dequantize.register
def _(weight: Int8Weight) -> torch.Tensor:
    return weight.weight.float().mul_(weight.scale[..., None])


def e4m3(stored: torch.Tensor) -> torch.Tensor:
    """float32 of float8_e4m3fn, by table: torch's conversion takes five times longer on a CPU."""
    return _look_up(_e4m3_table(stored.device), stored.view(torch.uint8))


def e8m0(scale: torch.Tensor) -> torch.Tensor:
    """2^(byte - 127) in float32, NaN for 255."""
    return scale.view(torch.float8_e8m0fnu).float()


def nibble_values(packed: torch.Tensor, values: tuple[float, ...]) -> torch.Tensor:
    """float32 [..., K] of uint8 [..., K / 2]: code c is values[c], the low nibble is the even k."""
    return _look_up(_pair_table(values, packed.device), packed).view(torch.float32)


def _look_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


@cache
def _e4m3_table(device: torch.device) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().to(device)


@cache
def _pair_table(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """int64 [256]: the two float32 values of a byte side by side, so one look-up serves both."""
    value = torch.tensor(values)
    pairs = torch.stack([value.repeat(16), value.repeat_interleave(16)], -1)
    return pairs.view(torch.int64).flatten().to(device)


def _groups(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A view of [..., K] as [..., K / g, g] for a scale of [..., K / g]."""
    return values.unflatten(-1, (scale.shape[-1], -1))


def select(weight: _W, index: int) -> _W:
    """The weight at `index` of the first batch dim; no copy."""
    parts = {name: value[index] for name, value in _tensors(weight).items()}
    return _replace(weight, parts)


def row_range(weight: _W, start: int, stop: int) -> _W:
    """Rows start to stop of a weight without batch dims; no copy.

    `start` must be a multiple of the format's row block (128 for FP8).
    """
    parts = {
        name: value[start:stop] if value.ndim > 0 else value
        for name, value in _tensors(weight).items()
    }
    if isinstance(weight, Fp8BlockWeight):
        block_rows = weight.block_size[0]
        assert start % block_rows == 0
        parts["scale"] = weight.scale[start // block_rows : -(-stop // block_rows)]
    return _replace(weight, parts)


def pieces(weight: _W, max_rows: int) -> Iterator[_W]:
    """The matrices of all batch dims in order, each in pieces of at most `max_rows` rows.

    A piece of FP8 is whole blocks of rows, and at least one. No copy.
    """
    stored = next(iter(_tensors(weight).values()))
    if stored.ndim > 2:
        for index in range(stored.shape[0]):
            yield from pieces(select(weight, index), max_rows)
        return
    block_rows = weight.block_size[0] if isinstance(weight, Fp8BlockWeight) else 1
    step = max(1, max_rows // block_rows) * block_rows
    rows = stored.shape[0]
    for start in range(0, rows, step):
        yield row_range(weight, start, min(start + step, rows))


def move(weight: _W, device: torch.device, dense_dtype: torch.dtype) -> _W:
    """The weight on `device`; a dense one in `dense_dtype`, the others bit for bit."""
    dtype = dense_dtype if isinstance(weight, DenseWeight) else None
    parts = {name: value.to(device=device, dtype=dtype) for name, value in _tensors(weight).items()}
    return _replace(weight, parts)


def _tensors(weight: Weight) -> dict[str, torch.Tensor]:
    """The tensors of a weight by field; the first one has a row for each row of the matrix."""
    return {name: value for name, value in vars(weight).items() if isinstance(value, torch.Tensor)}


def _replace(weight: _W, parts: dict[str, Any]) -> _W:
    """Activations stay unquantised here, so the result needs no activation scales."""
    if isinstance(weight, Int8Weight):
        parts = {**parts, "static_input": None}
    return dataclasses.replace(weight, **parts)
