"""bfloat16 where a machine multiplies it many times faster than float32; weights, gradients and the
optimizer's state stay float32.

On a CPU with AMX the fast path also wants matrices of few different sizes: a kernel is made for
each size it has not seen, which costs more than the product (measured on one core: 47 GFLOP/s with
sizes that are all different, 1,000 to 1,400 with the same ones; float32 has 160).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

ROWS_MULTIPLE = 64  # matrices have a multiple of this many rows, so that few sizes occur

P = ParamSpec("P")
Size = TypeVar("Size", int, torch.Tensor)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fastest_dtype(device_type: str) -> torch.dtype:
    """In which the device multiplies fastest: bfloat16 on CUDA and on a CPU with AMX."""
    return torch.bfloat16 if device_type == "cuda" or has_amx() else torch.float32


def has_amx() -> bool:
    """Whether this CPU has tile registers for bfloat16."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than PyTorch 2.9
    return bool(capabilities.get("amx_bf16"))


def cpp_compiler() -> str | None:
    """$CXX or g++, where it is."""
    return shutil.which(os.environ.get("CXX", "g++"))


def precision_of(dtype: torch.dtype) -> str:
    """Its name in PRECISIONS."""
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def is_mixed_on_cpu(x: torch.Tensor) -> bool:
    """Whether `x` is computed on in bfloat16 by a CPU."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def fused(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """`function` compiled to one loop over its elements at its first call, where there are a C++
    compiler and Python's headers; as it stands, elsewhere and when compiling fails."""
    chosen: Callable[P, torch.Tensor] | None = None

    def call(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        nonlocal chosen
        if chosen is not None:
            return chosen(*args, **kwargs)
        chosen = torch.compile(function, dynamic=True) if can_compile() else function
        try:
            return chosen(*args, **kwargs)
        except Exception as error:
            if chosen is function:
                raise
            reason = str(error).partition("\n")[0]
            print(f"{function.__name__} is not compiled: {reason}", file=sys.stderr)
            chosen = function
            return function(*args, **kwargs)

    return call


@cache
def can_compile() -> bool:
    """What PyTorch's compiler for CPUs needs: $CXX or g++, and Python.h."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return cpp_compiler() is not None and headers.is_file()


def padded_to(size: Size, multiple: int) -> Size:
    return -(-size // multiple) * multiple
