"""Operation -> implementation, chosen once per device and passed on as an argument.

Fast kernels replace entries one by one; `describe` says which implementation serves each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from m2serve.kernels import reference


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
    del device  # every device runs the reference until it has kernels of its own
    return Kernels(
        **{field.name: getattr(reference, field.name) for field in dataclasses.fields(Kernels)}
    )
