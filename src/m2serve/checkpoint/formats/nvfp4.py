"""NVFP4: E2M1 codes, an E4M3 scale for 16 of them, one float32 scale for the matrix.

ModelOpt stores the global scales as multipliers, compressed-tensors as divisors; in memory they
are multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.fp8_block import E4M3_MAX
from m2serve.checkpoint.formats.nibbles import encode_e2m1, pack_nibbles
from m2serve.checkpoint.formats.scales import check_finite, check_positive
from m2serve.checkpoint.formats.storage import SCALAR, StorageFormat, TensorInfo, TensorRule
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Nvfp4Weight

GROUP_SIZE = 16
E2M1_MAX = 6.0
E4M3_TINY = 2.0**-9


class _Nvfp4(StorageFormat):
    """What both layouts share; the suffixes differ."""

    codes: ClassVar[str]
    global_scale: ClassVar[str]
    input_scale: ClassVar[str]

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        codes, scale = tensors.get(cls.codes), tensors.get("weight_scale")
        if codes is None or codes.dtype != "U8":
            return None
        is_e4m3 = scale is not None and scale.dtype == "F8_E4M3"
        return cls() if is_e4m3 or cls.global_scale in tensors else None

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        rows, columns = linear.rows, linear.columns
        return {
            self.codes: TensorRule(("U8",), ((rows, columns // 2),)),
            "weight_scale": TensorRule(("F8_E4M3",), ((rows, columns // GROUP_SIZE),)),
            self.global_scale: TensorRule(("F32",), SCALAR),
            self.input_scale: TensorRule(("F32",), SCALAR, optional=True),
        }

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if "weight_scale" in tensors:
            check_finite(f"{name}.weight_scale", tensors["weight_scale"])
        for suffix in (self.global_scale, self.input_scale):
            if suffix in tensors:
                check_positive(f"{name}.{suffix}", tensors[suffix])


@dataclass(frozen=True)
class Nvfp4ModelOpt(_Nvfp4):
    """`weight`, `weight_scale`, `weight_scale_2` (multiplier) and `input_scale` (multiplier)."""

    name: ClassVar[str] = "nvfp4-modelopt"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("weight_scale", "weight_scale_2", "input_scale")
    codes: ClassVar[str] = "weight"
    global_scale: ClassVar[str] = "weight_scale_2"
    input_scale: ClassVar[str] = "input_scale"

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Nvfp4Weight:
        input_scale = tensors.get("input_scale")
        return Nvfp4Weight(
            tensors["weight"],
            tensors["weight_scale"],
            tensors["weight_scale_2"].reshape(()),
            None if input_scale is None else input_scale.reshape(()),
        )


@dataclass(frozen=True)
class Nvfp4CompressedTensors(_Nvfp4):
    """`weight_packed`, `weight_scale`, `weight_global_scale`, `input_global_scale` (divisors)."""

    name: ClassVar[str] = "nvfp4-ct"
    scale_suffixes: ClassVar[tuple[str, ...]] = (
        "weight_scale",
        "weight_global_scale",
        "input_global_scale",
    )
    codes: ClassVar[str] = "weight_packed"
    global_scale: ClassVar[str] = "weight_global_scale"
    input_scale: ClassVar[str] = "input_global_scale"

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Nvfp4Weight:
        input_divisor = tensors.get("input_global_scale")
        return Nvfp4Weight(
            tensors["weight_packed"],
            tensors["weight_scale"],
            1.0 / tensors["weight_global_scale"].reshape(()),
            None if input_divisor is None else 1.0 / input_divisor.reshape(()),
        )


def quantize_modelopt(
    weight: torch.Tensor, *, amax: float | None = None, input_amax: float | None = None
) -> dict[str, torch.Tensor]:
    """float32 [N, K] -> file tensors, bit for bit ModelOpt's max calibration.

    `amax` replaces the largest magnitude (w1 and w3 share one); `input_amax` is the activations'.
    """
    largest = _largest(weight) if amax is None else amax
    global_scale = torch.tensor(largest) / (E2M1_MAX * E4M3_MAX)
    codes, scale = _encode(weight, global_scale)
    tensors = {"weight": codes, "weight_scale": scale, "weight_scale_2": global_scale}
    if input_amax is not None:
        tensors["input_scale"] = torch.tensor(input_amax) / (E2M1_MAX * E4M3_MAX)
    return tensors


def quantize_compressed_tensors(
    weight: torch.Tensor, *, amax: float | None = None, input_amax: float | None = None
) -> dict[str, torch.Tensor]:
    """float32 [N, K] -> file tensors with divisors as global scales."""
    largest = _largest(weight) if amax is None else amax
    divisor = (E2M1_MAX * E4M3_MAX) / torch.tensor([largest])
    codes, scale = _encode(weight, 1.0 / divisor[0])
    tensors = {"weight_packed": codes, "weight_scale": scale, "weight_global_scale": divisor}
    if input_amax is not None:
        tensors["input_global_scale"] = (E2M1_MAX * E4M3_MAX) / torch.tensor([input_amax])
    return tensors


def _largest(weight: torch.Tensor) -> float:
    """Largest magnitude; a matrix of zeros gets the one that makes its global scale 1."""
    return float(weight.abs().max()) or E2M1_MAX * E4M3_MAX


def _encode(weight: torch.Tensor, global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K / 2] and E4M3 scales [N, K / 16] under a given multiplier."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // GROUP_SIZE, GROUP_SIZE)
    scale = groups.abs().amax(-1) / (E2M1_MAX * global_scale)
    scale = torch.where(scale == 0, 1.0, scale).clamp(E4M3_TINY, E4M3_MAX).to(torch.float8_e4m3fn)
    step = scale.to(torch.float32) * global_scale
    return pack_nibbles(encode_e2m1(groups / step[..., None]).view(rows, columns)), scale
