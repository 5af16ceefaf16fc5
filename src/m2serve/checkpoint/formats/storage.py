"""What every storage format can do: recognise itself, state its tensors, become a Weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Weight

# safetensors' names of the dtypes a checkpoint of this family may hold.
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = ("BF16", "F16", "F32")
SCALAR: tuple[tuple[int, ...], ...] = ((), (1,))


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a shard's header describes it; `dtype` is safetensors' name."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    nbytes: int


@dataclass(frozen=True)
class TensorRule:
    """What a tensor of a linear must look like: any of these dtypes, any of these shapes."""

    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    optional: bool = False


class StorageFormat(ABC):
    """One way to store a linear; two formats are equal when their parameters are.

    `scale_suffixes` are the tensors whose NaN or Inf would poison every output, `unpacked_suffixes`
    those of four-bit codes that take a byte each in memory.
    """

    name: ClassVar[str]
    scale_suffixes: ClassVar[tuple[str, ...]]
    unpacked_suffixes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        """The format when these suffixes and dtypes are its own, else None."""

    @abstractmethod
    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        """Suffix -> rule; every other suffix is an extra tensor."""

    @abstractmethod
    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise CheckpointError naming a scale tensor of linear `name` that is NaN, Inf or
        impossible; suffixes that are absent are skipped."""

    @abstractmethod
    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Weight:
        """File tensors (rules and scales already checked) as the in-memory class, same bits."""

    def from_tensors(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Weight:
        """Check the values of the scales and convert; raises CheckpointError naming the tensor."""
        self.check_scales(linear.name, tensors)
        return self.to_weight(linear, tensors)

    def __str__(self) -> str:
        return self.name


def ceil_div(numerator: int, denominator: int) -> int:
    """Blocks of `denominator` that cover `numerator`."""
    return -(-numerator // denominator)
