"""Refusing scales that would turn every output into NaN."""

from __future__ import annotations

import torch

from m2serve.errors import CheckpointError

_REMEDY = "the checkpoint is damaged, download it again or take another one"


def check_finite(name: str, scale: torch.Tensor) -> None:
    """Raise CheckpointError when a float scale (E4M3 included) holds NaN or Inf."""
    if scale.dtype == torch.float8_e4m3fn:
        bad = (scale.view(torch.uint8) & 0x7F) == 0x7F
    else:
        bad = ~torch.isfinite(scale)
    _refuse(name, scale, bad, "NaN or Inf")


def check_positive(name: str, scale: torch.Tensor) -> None:
    """Raise CheckpointError when a scale is not a finite number above zero."""
    check_finite(name, scale)
    _refuse(name, scale, scale <= 0, "a scale that is not above zero")


def check_e8m0(name: str, scale: torch.Tensor) -> None:
    """Raise CheckpointError when an E8M0 scale holds byte 255, which is NaN."""
    _refuse(name, scale, scale == 255, "E8M0 NaN (255)")


def _refuse(name: str, scale: torch.Tensor, bad: torch.Tensor, what: str) -> None:
    if not bool(bad.any()):
        return
    first = [int(index) for index in bad.nonzero()[0]] if bad.dim() else []
    value = scale[tuple(first)].item() if first else scale.item()
    raise CheckpointError(f"{name} holds {what} ({value} at {first}); {_REMEDY}")
