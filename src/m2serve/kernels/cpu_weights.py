"""Weights as the C interface takes them: `struct m2_weight` of cpu/types.h. No copy is made.

With int8 activations the rows are put in another order, in place (cpu/interleave.h); PyTorch cannot
read such a weight any more.
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import singledispatch

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
from m2serve.kernels.cpu_structs import CpuWeight

_FLOAT_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_FP8_BLOCK, _NVFP4, _MXFP4, _INT4, _INT8 = range(3, 8)
# A block of FP8 is whole vectors of codes; a group of INT4 is a power of two times this.
_FP8_STEP = 64
_INT4_STEP = 32


def has_integer_codes(weight: CpuWeight) -> bool:
    """Whether int8 activations can meet the weight, once it is interleaved."""
    return weight.format in (_NVFP4, _MXFP4, _INT4, _INT8)


def describe_weight(weight: Weight) -> str:
    """In words, for a message about one the kernels cannot take."""
    sizes = (
        f"{field.name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for field in fields(weight)
        if isinstance(value := getattr(weight, field.name), torch.Tensor)
    )
    return f"a {type(weight).__name__} of {', '.join(sizes)}"


@singledispatch
def cpu_weight(weight: Weight) -> CpuWeight | None:
    """None if the kernels cannot take it: another layout, block size or element type."""
    return None


@cpu_weight.register
def _(weight: DenseWeight) -> CpuWeight | None:
    if weight.weight.dtype not in _FLOAT_TYPES:
        return None
    return _describe(_FLOAT_TYPES[weight.weight.dtype], weight.weight, 1, None)


@cpu_weight.register
def _(weight: Fp8BlockWeight) -> CpuWeight | None:
    block_rows, block_columns = weight.block_size
    if block_columns % _FP8_STEP != 0 or weight.scale.dtype != torch.float32:
        return None
    return _describe(
        _FP8_BLOCK, weight.weight, 1, weight.scale, group=block_columns, block_rows=block_rows
    )


@cpu_weight.register
def _(weight: Nvfp4Weight) -> CpuWeight | None:
    described = _describe(_NVFP4, weight.packed, 2, weight.scale, group=16)
    if described is not None:
        described.global_scale = weight.global_scale.data_ptr()
    return described if weight.global_scale.is_contiguous() else None


@cpu_weight.register
def _(weight: Mxfp4Weight) -> CpuWeight | None:
    return _describe(_MXFP4, weight.packed, 2, weight.scale, group=32)


@cpu_weight.register
def _(weight: Int4Weight) -> CpuWeight | None:
    steps, rest = divmod(weight.group_size, _INT4_STEP)
    if rest != 0 or steps.bit_count() != 1 or weight.scale.dtype not in _FLOAT_TYPES:
        return None
    described = _describe(_INT4, weight.packed, 2, weight.scale, group=weight.group_size)
    if described is not None and weight.zero_point is not None:
        described.zero_point = weight.zero_point.data_ptr()
        return described if weight.zero_point.is_contiguous() else None
    return described


@cpu_weight.register
def _(weight: Int8Weight) -> CpuWeight | None:
    if weight.scale.dtype not in _FLOAT_TYPES:
        return None
    return _describe(_INT8, weight.weight, 1, weight.scale, group=32)


def _describe(
    format: int,
    codes: torch.Tensor,
    codes_per_element: int,
    scale: torch.Tensor | None,
    group: int = 0,
    block_rows: int = 0,
) -> CpuWeight | None:
    if not codes.is_contiguous() or (scale is not None and not scale.is_contiguous()):
        return None
    *batch, rows, width = codes.shape
    return CpuWeight(
        format=format,
        scale_type=_FLOAT_TYPES.get(scale.dtype, 0) if scale is not None else 0,
        matrices=math.prod(batch),
        rows=rows,
        columns=width * codes_per_element,
        group=group,
        block_rows=block_rows,
        codes=codes.data_ptr(),
        scale=scale.data_ptr() if scale is not None else None,
    )
