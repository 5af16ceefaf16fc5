"""Operation -> implementation, chosen once per device and passed on as an argument.

Fast kernels replace entries one by one; `describe` says which implementation serves each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from m2serve.kernels import reference
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_linear import CpuMatmul


@dataclass(frozen=True)
class Kernels:
    """Signatures as in kernels.reference."""

    linear: Callable[..., torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    rotary_cos_sin: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    apply_rotary: Callable[..., torch.Tensor]
    write_kv: Callable[..., None]
    paged_attention: Callable[..., torch.Tensor]
    route: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    experts: Callable[..., torch.Tensor]

    def describe(self) -> dict[str, str]:
        """The module that implements each operation."""
        return {
            field.name: getattr(self, field.name).__module__ for field in dataclasses.fields(self)
        }


def select_kernels(device: torch.device) -> Kernels:
    """The fastest implementation of every operation that exists for `device`."""
    chosen = Kernels(
        **{field.name: getattr(reference, field.name) for field in dataclasses.fields(Kernels)}
    )
    library = load_cpu_library() if device.type == "cpu" else None
    if library is None:
        return chosen
    native = CpuMatmul(library, "auto")
    return dataclasses.replace(chosen, linear=native.linear, experts=native.experts)


def linear_dtype(device: torch.device, stored: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """How a dense matrix is held that was stored and is computed with in these dtypes.

    The native kernels multiply BF16 weights with float32 activations exactly, so BF16 stays as it
    is: half the bytes of a step. Elsewhere the matrix takes the dtype of the computation.
    """
    is_native = device.type == "cpu" and load_cpu_library() is not None
    return stored if is_native and stored == torch.bfloat16 else computed
