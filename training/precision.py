"""bfloat16 where a machine multiplies it many times faster than float32; weights, gradients and the
optimizer's state stay float32.

On a CPU with AMX the fast path also wants matrices of few different sizes: a kernel is made for
each size it has not seen, which costs more than the product (measured on one core: 47 GFLOP/s with
sizes that are all different, 1,000 to 1,400 with the same ones; float32 has 160).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import ParamSpec

import torch

ROWS_MULTIPLE = 64  # matrices have a multiple of this many rows, so that few sizes occur

P = ParamSpec("P")


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fastest_dtype(device_type: str) -> torch.dtype:
    """In which the device multiplies fastest: bfloat16 on CUDA and on a CPU with AMX."""
    has_bfloat16 = device_type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def is_mixed_on_cpu(x: torch.Tensor) -> bool:
    """Whether `x` is computed on in bfloat16 by a CPU."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def fused(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """`function` compiled to one loop over its elements at its first call, where there is a C++
    compiler; as it stands, elsewhere."""
    compiled = torch.compile(function, dynamic=True)

    def call(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        return (compiled if _has_compiler() else function)(*args, **kwargs)

    return call


@cache
def _has_compiler() -> bool:
    return shutil.which("g++") is not None or shutil.which("clang++") is not None


def padded_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
