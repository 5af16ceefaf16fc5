"""INT8 with a scale a row: compressed-tensors and Ascend (dynamic and static activations)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.scales import check_finite, check_positive
from m2serve.checkpoint.formats.storage import (
    FLOATS,
    SCALAR,
    StorageFormat,
    TensorInfo,
    TensorRule,
)
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Int8Weight, StaticInput
from m2serve.errors import CheckpointError

INT8_MAX = 127
_STATIC_SUFFIXES = ("input_scale", "input_offset", "quant_bias", "deq_scale")
_ASCEND_SUFFIXES = ("weight_offset", *_STATIC_SUFFIXES)


@dataclass(frozen=True)
class Int8Channel(StorageFormat):
    """compressed-tensors int-quantized: `weight` I8 [N, K] and `weight_scale` [N, 1]."""

    name: ClassVar[str] = "int8-ct"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("weight_scale",)

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        return cls() if _is_int8(tensors) and not _has(tensors, _ASCEND_SUFFIXES) else None

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        return _weight_and_scale(linear)

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if "weight_scale" in tensors:
            check_finite(f"{name}.weight_scale", tensors["weight_scale"])

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Int8Weight:
        return Int8Weight(tensors["weight"], tensors["weight_scale"].reshape(-1))


@dataclass(frozen=True)
class Int8Ascend(StorageFormat):
    """Ascend W8A8_DYNAMIC: `weight_offset` [N, 1], all zero, beside `weight` and `weight_scale`.

    Static W8A8 adds `input_scale`, `input_offset`, `quant_bias` I32 [N] and `deq_scale` [N], which
    is F32, or I64 whose low 32 bits are a float32.
    """

    static: bool
    name: ClassVar[str] = "int8-ascend"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("weight_scale", "input_scale", "deq_scale")

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        if not _is_int8(tensors) or not _has(tensors, _ASCEND_SUFFIXES):
            return None
        return cls(_has(tensors, _STATIC_SUFFIXES))

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        rules = _weight_and_scale(linear)
        rules["weight_offset"] = TensorRule((*FLOATS, "I8", "I32"), rules["weight_scale"].shapes)
        if self.static:
            rules["input_scale"] = TensorRule(FLOATS, SCALAR)
            rules["input_offset"] = TensorRule((*FLOATS, "I8", "I32"), SCALAR)
            rules["quant_bias"] = TensorRule(("I32",), ((linear.rows,),))
            rules["deq_scale"] = TensorRule(("F32", "I64"), ((linear.rows,),))
        return rules

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if "weight_scale" in tensors:
            check_finite(f"{name}.weight_scale", tensors["weight_scale"])
        if "input_scale" in tensors:
            check_positive(f"{name}.input_scale", tensors["input_scale"])
        if "deq_scale" in tensors:
            check_finite(f"{name}.deq_scale", _float_bits(tensors["deq_scale"]))

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Int8Weight:
        if bool((tensors["weight_offset"] != 0).any()):
            raise CheckpointError(
                f"{linear.name}.weight_offset is not zero; only symmetric INT8 weights are read"
            )
        static_input = None
        if self.static:
            static_input = StaticInput(
                scale=tensors["input_scale"].to(torch.float32).reshape(()),
                offset=tensors["input_offset"].to(torch.float32).reshape(()),
                quant_bias=tensors["quant_bias"],
                deq_scale=_float_bits(tensors["deq_scale"]),
            )
        return Int8Weight(tensors["weight"], tensors["weight_scale"].reshape(-1), static_input)

    def __str__(self) -> str:
        return f"{self.name} ({'static W8A8' if self.static else 'W8A8_DYNAMIC'})"


def quantize(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """float32 [N, K], finite -> compressed-tensors' file tensors; a row's largest magnitude is 127.

    A value becomes one within half its row's scale of it.
    """
    amax = weight.abs().amax(1, keepdim=True)
    # Dividing by a subnormal scale would overflow; 2^-126 keeps such a row near zero instead.
    scale = (amax / INT8_MAX).clamp_(min=torch.finfo(torch.float32).tiny)
    scale[amax == 0] = 1.0
    codes = (weight / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}


def quantize_ascend(
    weight: torch.Tensor, *, input_range: tuple[float, float] | None = None
) -> dict[str, torch.Tensor]:
    """float32 [N, K] -> Ascend's file tensors; static when the activations' range is given."""
    tensors = quantize(weight)
    tensors["weight_offset"] = torch.zeros_like(tensors["weight_scale"])
    if input_range is None:
        return tensors
    low, high = input_range
    input_scale = torch.tensor([(high - low) / 255])
    offset = (torch.tensor([-low]) / input_scale).round() - 128
    row_sums = tensors["weight"].sum(1, dtype=torch.int32)
    tensors["input_scale"] = input_scale
    tensors["input_offset"] = offset.to(torch.int8)
    tensors["quant_bias"] = -offset.to(torch.int32) * row_sums
    tensors["deq_scale"] = input_scale * tensors["weight_scale"].reshape(-1)
    return tensors


def _is_int8(tensors: Mapping[str, TensorInfo]) -> bool:
    weight = tensors.get("weight")
    return weight is not None and weight.dtype == "I8"


def _has(tensors: Mapping[str, TensorInfo], suffixes: tuple[str, ...]) -> bool:
    return any(suffix in tensors for suffix in suffixes)


def _weight_and_scale(linear: LinearSpec) -> dict[str, TensorRule]:
    return {
        "weight": TensorRule(("I8",), ((linear.rows, linear.columns),)),
        "weight_scale": TensorRule(FLOATS, ((linear.rows, 1), (linear.rows,))),
    }


def _float_bits(scale: torch.Tensor) -> torch.Tensor:
    if scale.dtype == torch.float32:
        return scale
    return scale.view(torch.int32)[0::2].contiguous().view(torch.float32)
