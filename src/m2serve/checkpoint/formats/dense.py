"""Not quantised: one tensor `weight` in BF16, F16 or F32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.storage import FLOATS, StorageFormat, TensorInfo, TensorRule
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import DenseWeight


@dataclass(frozen=True)
class Dense(StorageFormat):
    """`weight` [N, K]."""

    name: ClassVar[str] = "dense"
    scale_suffixes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        weight = tensors.get("weight")
        return cls() if weight is not None and weight.dtype in FLOATS else None

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        return {"weight": TensorRule(FLOATS, ((linear.rows, linear.columns),))}

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        return

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> DenseWeight:
        return DenseWeight(tensors["weight"])
