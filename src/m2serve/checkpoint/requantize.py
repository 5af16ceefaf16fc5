"""Attention and head in another format than the file's: made while loading, tensor by tensor.

Reading is what decoding waits for, so fewer bytes are more tokens a second. Only dense weights
(BF16, F16, F32) are converted; one that is stored in the wanted format already stays bit for bit.

What is exact: many releases hold attention in BF16 that was made from an FP8 original, one scale a
block of 128 x 128 and its largest code 448. Such a block gets the original's codes back, and a
scale with which code * scale rounds to the file's BF16 in every element. The original's float32
scale is gone (several round to the same BF16) and is met within 2^-9. Any other value is rounded:
within formats.fp8_block.quantize's bound, or half a step of its row for INT8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch

from m2serve.checkpoint.formats import (
    Dense,
    Fp8Block,
    Int8Ascend,
    Int8Channel,
    StorageFormat,
    fp8_block,
    int8,
)
from m2serve.checkpoint.formats.scales import check_finite
from m2serve.checkpoint.layout import LinearPlan
from m2serve.checkpoint.weights import DenseWeight, Fp8BlockWeight, Int8Weight
from m2serve.errors import UsageError
from m2serve.spec.cost import linear_bytes

# "" leaves a weight as it is stored.
WeightFormat = Literal["", "bf16", "fp8", "int8"]

_STORED_AS: dict[str, tuple[type[StorageFormat], ...]] = {
    "bf16": (Dense,),
    "fp8": (Fp8Block,),
    "int8": (Int8Channel, Int8Ascend),
}
_BLOCK_SIZE = (128, 128)
# Elements that exist in float32 at a time, and several times over.
_ELEMENTS_AT_ONCE = 1 << 20
# Half the distance of two BF16 numbers, counted in float32 numbers.
_HALF_STEP = 1 << 15


def check_requantizable(option: str, format: str, plans: Iterable[LinearPlan]) -> None:
    """Raise UsageError, naming `option`, when `format` is unknown or cannot be made of a plan."""
    if format not in get_args(WeightFormat):
        known = ", ".join(name for name in _STORED_AS)
        raise UsageError(f"{option} is {format!r}; one of {known}")
    for plan in plans:
        if format and not isinstance(plan.format, (Dense, *_STORED_AS[format])):
            raise UsageError(
                f"{option} is {format}, but {plan.name} is stored as {plan.format}; only BF16, F16 "
                "and F32 are converted, so leave the option out"
            )


def is_requantized(plan: LinearPlan, format: str) -> bool:
    """Whether loading in `format` changes what the file holds; the plan has passed the check."""
    return bool(format) and isinstance(plan.format, Dense)


def bytes_saved(plan: LinearPlan, format: str, dense_itemsize: int) -> int:
    """Bytes by which `format` is smaller in memory than dense weights of `dense_itemsize`."""
    if not is_requantized(plan, format):
        return 0
    rows, columns = plan.linear.rows, plan.linear.columns
    return rows * columns * dense_itemsize - linear_bytes(rows, columns, format)


def requantize(
    name: str, weight: torch.Tensor, format: str
) -> DenseWeight | Fp8BlockWeight | Int8Weight:
    """A dense [N, K], which may be a view of a file, in `format`; float32 exists in slices only.

    Raises CheckpointError naming tensor `name` when it holds NaN or Inf, which no scale survives.
    """
    match format:
        case "bf16":
            return DenseWeight(weight.to(torch.bfloat16, copy=True))
        case "fp8":
            return _to_fp8(name, weight)
        case "int8":
            return _to_int8(name, weight)
    raise ValueError(f"nothing is requantised to {format!r}")


def _to_fp8(name: str, weight: torch.Tensor) -> Fp8BlockWeight:
    block_rows, block_columns = _BLOCK_SIZE
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scale = torch.empty(-(-rows // block_rows), -(-columns // block_columns))
    for start, values in _slices(name, weight, block_rows):
        made = fp8_block.quantize(values, _BLOCK_SIZE)
        of_slice = made["weight_scale_inv"]
        if weight.dtype == torch.bfloat16:
            of_slice = _fitted_scale(values, made["weight"], of_slice)
        codes[start : start + len(values)] = made["weight"]
        scale[start // block_rows :][: len(of_slice)] = of_slice
    return Fp8BlockWeight(codes, scale, _BLOCK_SIZE)


def _to_int8(name: str, weight: torch.Tensor) -> Int8Weight:
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0])
    for start, values in _slices(name, weight, 1):
        made = int8.quantize(values)
        codes[start : start + len(values)] = made["weight"]
        scale[start : start + len(values)] = made["weight_scale"].view(-1)
    return Int8Weight(codes, scale)


def _slices(name: str, weight: torch.Tensor, row_step: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, float32 rows), whole multiples of `row_step` but for the last."""
    step = max(1, _ELEMENTS_AT_ONCE // (weight.shape[1] * row_step)) * row_step
    for start in range(0, weight.shape[0], step):
        values = weight[start : start + step].float()
        check_finite(name, values)
        yield start, values


def _fitted_scale(values: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Per block the scale with which all codes round to the BF16 `values`, where there is one.

    A product rounds to v when it lies between the midpoints to v's neighbours, which are half a
    BF16 step away; dividing them by the code bounds the scale. Blocks without a common scale keep
    theirs.
    """
    v = fp8_block.as_blocks(values, _BLOCK_SIZE)
    code = fp8_block.as_blocks(codes.float(), _BLOCK_SIZE)
    magnitude = code.abs()
    bits = v.abs().view(torch.int32)
    no_bound = magnitude == 0
    low = ((bits - _HALF_STEP).view(torch.float32) / magnitude).masked_fill_(no_bound, 0.0)
    high = ((bits + _HALF_STEP).view(torch.float32) / magnitude).masked_fill_(no_bound, torch.inf)
    largest_low, smallest_high = low.amax(3).amax(1), high.amin(3).amin(1)
    is_inside = (largest_low < scale) & (scale < smallest_high)
    middle = largest_low + (smallest_high - largest_low) / 2
    fitted = torch.where(is_inside, scale, middle)
    rounded = (code * fitted[:, None, :, None]).bfloat16().float()
    fits = (rounded == v).all(3).all(1)
    return torch.where(fits, fitted, scale)
