"""Whether a checkpoint's weights fit, before the first is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from m2serve.checkpoint.formats.dense import Dense
from m2serve.checkpoint.layout import CheckpointLayout, LinearPlan
from m2serve.checkpoint.names import EMBEDDING
from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.requantize import is_requantized
from m2serve.errors import ResourceError
from m2serve.kernels.dispatch import linear_dtype
from m2serve.spec.cost import linear_bytes

_FLOAT32_BYTES = 4


def held_bytes(
    checkpoint: Checkpoint,
    layout: CheckpointLayout,
    formats: Mapping[str, str],
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Bytes of all weights in memory: quantised ones as stored, dense ones as they are held, those
    of `formats` (canonical name -> format, "" as stored) requantised."""

    def dense_bytes(shape: tuple[int, ...], tensor: str) -> int:
        is_bf16 = checkpoint.tensors[tensor].dtype == "BF16"
        stored = torch.bfloat16 if is_bf16 else dtype
        return math.prod(shape) * linear_dtype(device, stored, dtype).itemsize

    def linear(plan: LinearPlan) -> int:
        size = (plan.linear.rows, plan.linear.columns)
        format = formats.get(plan.name, "")
        if is_requantized(plan, format):
            return linear_bytes(*size, format)
        if isinstance(plan.format, Dense):
            return dense_bytes(size, next(iter(plan.tensors.values())))
        unpacked = [plan.tensors.get(suffix) for suffix in plan.format.unpacked_suffixes]
        return plan.nbytes + sum(checkpoint.tensors[name].nbytes for name in unpacked if name)

    total = sum(map(linear, layout.linears.values()))
    for name, plan in layout.plain.items():
        if name == EMBEDDING:
            total += dense_bytes(plan.spec.shape, plan.tensor)
        else:
            itemsize = _FLOAT32_BYTES if plan.spec.upcast else dtype.itemsize
            total += math.prod(plan.spec.shape) * itemsize
    return total


def check_room(needed_bytes: int, free_bytes: int, device: torch.device) -> None:
    """Raises ResourceError."""
    if needed_bytes > free_bytes:
        raise ResourceError(
            f"the weights take {needed_bytes / 1e9:.1f} GB of memory, and "
            f"{free_bytes / 1e9:.1f} GB are free on {device}; end what else uses it, "
            "take a smaller checkpoint, or see what fits with m2 plan"
        )
