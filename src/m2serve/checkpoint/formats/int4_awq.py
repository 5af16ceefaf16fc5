"""INT4 as AutoAWQ's gemm version packs it: transposed, eight output columns an int32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.int4_packed import encode_asymmetric
from m2serve.checkpoint.formats.nibbles import pack_words
from m2serve.checkpoint.formats.scales import check_finite
from m2serve.checkpoint.formats.storage import StorageFormat, TensorInfo, TensorRule, ceil_div
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Int4Weight

# Bits 4i..4i+3 of a word hold output column 8c + ORDER[i].
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Int4Awq(StorageFormat):
    """`qweight` I32 [K, N / 8], `qzeros` I32 [K / g, N / 8], `scales` F16 [K / g, N]."""

    group_size: int
    name: ClassVar[str] = "int4-awq"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("scales",)
    unpacked_suffixes: ClassVar[tuple[str, ...]] = ("qzeros",)

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        weight, scales = tensors.get("qweight"), tensors.get("scales")
        if weight is None or weight.dtype != "I32" or "g_idx" in tensors:
            return None
        groups = scales.shape[0] if scales is not None and len(scales.shape) == 2 else 0
        return cls(linear.columns // groups if groups else linear.columns)

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        groups = ceil_div(linear.columns, self.group_size)
        words = ceil_div(linear.rows, 8)
        return {
            "qweight": TensorRule(("I32",), ((linear.columns, words),)),
            "qzeros": TensorRule(("I32",), ((groups, words),)),
            "scales": TensorRule(("F16", "BF16"), ((groups, linear.rows),)),
        }

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if "scales" in tensors:
            check_finite(f"{name}.scales", tensors["scales"])

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Int4Weight:
        words, zeros = _word_bytes(tensors["qweight"]), _word_bytes(tensors["qzeros"])
        return Int4Weight(
            packed=_columns(words[0::2], words[1::2]),
            scale=tensors["scales"].T.contiguous(),
            zero_point=_columns(zeros, torch.zeros_like(zeros)),
            group_size=self.group_size,
        )

    def __str__(self) -> str:
        return f"{self.name} with group_size {self.group_size}"


def quantize(weight: torch.Tensor, *, group_size: int = 128) -> dict[str, torch.Tensor]:
    """float32 [N, K] -> file tensors, asymmetric, no activation-aware scaling."""
    codes, scale, zero_point = encode_asymmetric(weight, group_size, torch.float16)
    return {
        "qweight": _interleave(codes.T.contiguous()),
        "qzeros": _interleave(zero_point.T.contiguous()),
        "scales": scale.T.contiguous(),
    }


def _interleave(values: torch.Tensor) -> torch.Tensor:
    """uint8 0..15 [R, N] -> int32 [R, N / 8] in AWQ's order."""
    rows, columns = values.shape
    ordered = values.view(rows, columns // 8, 8)[..., list(ORDER)].reshape(rows, columns)
    return pack_words(ordered)


def _word_bytes(words: torch.Tensor) -> torch.Tensor:
    """int32 [R, W] -> uint8 [R, W, 4], the lowest byte first."""
    return words.view(torch.uint8).view(*words.shape, 4)


def _columns(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """Word bytes [R, W, 4] of even and odd rows -> uint8 [8 W, R], even row in the low nibble.

    Transposed before the columns are put in order, so that ordering moves whole rows.
    """
    rows, words, _ = even.shape
    columns = torch.empty(words, 8, rows, dtype=torch.uint8)
    halves = (even & 0xF) | (odd << 4), (even >> 4) | (odd & 0xF0)
    for parity, half in enumerate(halves):
        transposed = half.view(rows, words * 4).T.contiguous()
        columns[:, list(ORDER[parity::2])] = transposed.view(words, 4, rows)
    return columns.view(words * 8, rows)
