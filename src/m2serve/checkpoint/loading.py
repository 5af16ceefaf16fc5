"""Bringing planned tensors into memory, one linear or all experts of a layer at a time.

Every result owns its memory: tensors are copied once, from the mapped file into their place, so
the peak is the final size plus the pages of the files being read.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

from m2serve.checkpoint.formats.scales import check_finite
from m2serve.checkpoint.layout import LinearPlan, PlainPlan
from m2serve.checkpoint.reader import Checkpoint
from m2serve.checkpoint.requantize import WeightFormat, is_requantized, requantize
from m2serve.checkpoint.weights import Nvfp4Weight, StaticInput, Weight
from m2serve.errors import CheckpointError

# Called from the loading thread with (bytes_done, bytes_total) of the tensors in the files.
Progress = Callable[[int, int], None]
MAX_THREADS = 8

_Parts = TypeVar("_Parts", bound=Weight | StaticInput)


def load_plain(checkpoint: Checkpoint, plan: PlainPlan) -> torch.Tensor:
    """A norm, embedding or router tensor as stored; the router's are float32.

    Raises CheckpointError when a router tensor holds NaN or Inf, which would choose any expert.
    """
    tensor = checkpoint.read(plan.tensor)
    if not plan.spec.upcast:
        return tensor.clone()
    check_finite(plan.tensor, tensor)
    return tensor.to(torch.float32, copy=True)


def load_linear(checkpoint: Checkpoint, plan: LinearPlan, format: WeightFormat = "") -> Weight:
    """One linear without batch dims, a dense one in `format` if given.

    Raises CheckpointError naming a poisoned tensor.
    """
    if not is_requantized(plan, format):
        return load_stacked(checkpoint, [plan], ())
    name = plan.tensors["weight"]
    return requantize(name, checkpoint.read(name), format)


def load_stacked(
    checkpoint: Checkpoint,
    plans: Sequence[LinearPlan],
    batch_shape: tuple[int, ...],
    progress: Progress | None = None,
) -> Weight:
    """Linears of one size and format in a preallocated weight with leading dims `batch_shape`.

    `plans` fill the leading dims in row-major order, so [E, 2] takes w1, w3 of expert 0, then of
    expert 1. NVFP4 linears without an input scale get the largest of the others. Raises
    CheckpointError when formats or dtypes differ within the stack, or a scale is poisoned.
    """
    if len(plans) != math.prod(batch_shape):
        raise ValueError(f"{len(plans)} plans do not fill {batch_shape}")
    _check_alike(plans)
    first = _load_one(checkpoint, plans[0])
    needs_input_scale = any(_has_input_scale(plan) for plan in plans)
    stack = _allocate(_with_input_scale(first, needs_input_scale), batch_shape)

    def load(position: int) -> int:
        weight = _load_one(checkpoint, plans[position])
        _copy(stack, _with_input_scale(weight, needs_input_scale), position, plans, batch_shape)
        return plans[position].nbytes

    _run(load, plans, progress)
    if isinstance(stack, Nvfp4Weight) and stack.input_scale is not None:
        missing = stack.input_scale.isnan()
        stack.input_scale[missing] = stack.input_scale.nan_to_num(0.0).max()
    return stack


def _run(
    load: Callable[[int], int], plans: Sequence[LinearPlan], progress: Progress | None
) -> None:
    total, done = sum(plan.nbytes for plan in plans), 0
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1, len(plans))) as pool:
        pending = [pool.submit(load, position) for position in range(len(plans))]
        try:
            for future in as_completed(pending):
                done += future.result()
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_alike(plans: Sequence[LinearPlan]) -> None:
    first = plans[0]
    for plan in plans:
        size = (plan.linear.rows, plan.linear.columns)
        if plan.format != first.format or size != (first.linear.rows, first.linear.columns):
            raise CheckpointError(
                f"{plan.name} is stored as {plan.format} and {first.name} as {first.format}; "
                "m2serve computes the experts of a layer together, so they need one format"
            )


def _load_one(checkpoint: Checkpoint, plan: LinearPlan) -> Weight:
    tensors = {suffix: checkpoint.read(name) for suffix, name in plan.tensors.items()}
    return plan.format.from_tensors(plan.linear, tensors)


def _has_input_scale(plan: LinearPlan) -> bool:
    return bool({"input_scale", "input_global_scale"} & plan.tensors.keys())


def _with_input_scale(weight: Weight, needed: bool) -> Weight:
    """NaN marks an NVFP4 linear whose input scale is filled in once all are known."""
    if needed and isinstance(weight, Nvfp4Weight) and weight.input_scale is None:
        return dataclasses.replace(weight, input_scale=torch.tensor(math.nan))
    return weight


def _allocate(example: _Parts, batch_shape: tuple[int, ...]) -> _Parts:
    """The same class with every tensor enlarged by the batch dims, uninitialised."""
    changes: dict[str, Any] = {}
    for part in dataclasses.fields(example):
        value = getattr(example, part.name)
        if isinstance(value, torch.Tensor):
            changes[part.name] = torch.empty((*batch_shape, *value.shape), dtype=value.dtype)
        elif isinstance(value, StaticInput):
            changes[part.name] = _allocate(value, batch_shape)
    return dataclasses.replace(example, **changes)


def _copy(
    stack: Weight | StaticInput,
    weight: Weight | StaticInput,
    position: int,
    plans: Sequence[LinearPlan],
    batch_shape: tuple[int, ...],
) -> None:
    for part in dataclasses.fields(stack):
        target, value = getattr(stack, part.name), getattr(weight, part.name)
        if isinstance(target, StaticInput):
            _copy(target, value, position, plans, batch_shape)
        elif isinstance(target, torch.Tensor):
            if target.dtype != value.dtype:
                raise CheckpointError(
                    f"{plans[position].name} has {part.name} in {value.dtype} and {plans[0].name} "
                    f"in {target.dtype}; m2serve needs one dtype for the experts of a layer"
                )
            target.view(-1, *target.shape[len(batch_shape) :])[position].copy_(value)
