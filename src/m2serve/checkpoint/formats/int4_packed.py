"""INT4 as compressed-tensors packs it: eight codes an int32 along K, lowest nibble first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.nibbles import pack_words, unpack_nibbles
from m2serve.checkpoint.formats.scales import check_finite
from m2serve.checkpoint.formats.storage import (
    FLOATS,
    StorageFormat,
    TensorInfo,
    TensorRule,
    ceil_div,
)
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Int4Weight
from m2serve.errors import CheckpointError


@dataclass(frozen=True)
class Int4Packed(StorageFormat):
    """`weight_packed` I32 [N, K / 8], `weight_scale` [N, K / g], `weight_shape` I64 [2].

    An asymmetric one adds `weight_zero_point` I32 [ceil(N / 8), K / g], packed along dim 0.
    """

    group_size: int
    symmetric: bool
    name: ClassVar[str] = "int4-ct"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("weight_scale",)
    unpacked_suffixes: ClassVar[tuple[str, ...]] = ("weight_zero_point",)

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        packed, scale = tensors.get("weight_packed"), tensors.get("weight_scale")
        if packed is None or packed.dtype != "I32":
            return None
        groups = scale.shape[1] if scale is not None and len(scale.shape) == 2 else 0
        group_size = linear.columns // groups if groups else linear.columns
        return cls(group_size, "weight_zero_point" not in tensors)

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        rows, columns = linear.rows, linear.columns
        groups = ceil_div(columns, self.group_size)
        rules = {
            "weight_packed": TensorRule(("I32",), ((rows, ceil_div(columns, 8)),)),
            "weight_scale": TensorRule(FLOATS, ((rows, groups),)),
            "weight_shape": TensorRule(("I64", "I32"), ((2,),)),
            "weight_g_idx": TensorRule(("I32",), ((columns,),), optional=True),
        }
        if not self.symmetric:
            zero_points = (ceil_div(rows, 8), groups)
            rules["weight_zero_point"] = TensorRule(("I32",), (zero_points,))
        return rules

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if "weight_scale" in tensors:
            check_finite(f"{name}.weight_scale", tensors["weight_scale"])

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Int4Weight:
        self._check_shape(linear, tensors["weight_shape"])
        self._check_order(linear, tensors.get("weight_g_idx"))
        # A little-endian int32 of eight nibbles is four bytes of two, low nibble first.
        packed = tensors["weight_packed"].contiguous().view(torch.uint8)
        stored = tensors.get("weight_zero_point")
        zero_point = None if stored is None else _unpack_rows(stored, linear.rows)
        return Int4Weight(packed, tensors["weight_scale"], zero_point, self.group_size)

    def _check_shape(self, linear: LinearSpec, shape: torch.Tensor) -> None:
        if shape.tolist() != [linear.rows, linear.columns]:
            raise CheckpointError(
                f"{linear.name}.weight_shape says {shape.tolist()}, "
                f"config.json says [{linear.rows}, {linear.columns}]"
            )

    def _check_order(self, linear: LinearSpec, order: torch.Tensor | None) -> None:
        if order is None:
            return
        if not torch.equal(order.long(), torch.arange(linear.columns) // self.group_size):
            raise CheckpointError(
                f"{linear.name}.weight_g_idx reorders the columns (act-order), which m2serve does "
                "not read; use a checkpoint quantised without act-order"
            )

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.name} ({kind}, group_size {self.group_size})"


def quantize(
    weight: torch.Tensor,
    *,
    group_size: int,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """float32 [N, K] -> file tensors; scales from the largest magnitude or the range of a group."""
    rows, columns = weight.shape
    encode = encode_symmetric if symmetric else encode_asymmetric
    codes, scale, zero_point = encode(weight, group_size, scale_dtype)
    tensors = {
        "weight_packed": pack_words(codes),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if zero_point is not None:
        tensors["weight_zero_point"] = _pack_rows(zero_point)
    return tensors


def encode_symmetric(
    weight: torch.Tensor, group_size: int, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Codes uint8 [N, K] (8 is zero) and scales [N, K / g]: amax / 7."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // group_size, group_size)
    scale = _nonzero(groups.abs().amax(-1) / 7).to(scale_dtype)
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7) + 8
    return codes.to(torch.uint8).view(rows, columns), scale, None


def encode_asymmetric(
    weight: torch.Tensor, group_size: int, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 [N, K], scales [N, K / g] and zero points uint8 [N, K / g]; zero stays exact."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // group_size, group_size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = _nonzero((high - low) / 15).to(scale_dtype)
    zero_point = (-low / scale.float()).round().clamp(0, 15)
    codes = ((groups / scale.float()[..., None]).round() + zero_point[..., None]).clamp(0, 15)
    return codes.to(torch.uint8).view(rows, columns), scale, zero_point.to(torch.uint8)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _pack_rows(values: torch.Tensor) -> torch.Tensor:
    """uint8 0..15 [N, G] -> int32 [ceil(N / 8), G], row 8r + i in nibble i of word r."""
    rows, groups = values.shape
    padded = torch.zeros(ceil_div(rows, 8) * 8, groups, dtype=torch.uint8)
    padded[:rows] = values
    return pack_words(padded.T).T.contiguous()


def _unpack_rows(words: torch.Tensor, rows: int) -> torch.Tensor:
    """int32 [ceil(N / 8), G] -> uint8 0..15 [N, G]."""
    packed = words.T.flatten().view(torch.uint8).view(words.shape[1], -1)
    return unpack_nibbles(packed)[:, :rows].T.contiguous()
