"""FP8 E4M3 with one scale a block, the format of the official releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.scales import check_finite
from m2serve.checkpoint.formats.storage import StorageFormat, TensorInfo, TensorRule, ceil_div
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Fp8BlockWeight

E4M3_MAX = 448.0


@dataclass(frozen=True)
class Fp8Block(StorageFormat):
    """`weight` [N, K] and `weight_scale_inv` [ceil(N / n), ceil(K / k)], which is multiplied.

    compressed-tensors calls the same tensor `weight_scale`; `scale_suffix` is the one present.
    """

    block_size: tuple[int, int] = (128, 128)
    scale_suffix: str = field(default="weight_scale_inv", compare=False)
    name: ClassVar[str] = "fp8-block"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("weight_scale_inv", "weight_scale")

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        weight = tensors.get("weight")
        scale = tensors.get("weight_scale")
        if weight is None or weight.dtype != "F8_E4M3":
            return None
        if scale is None:
            return cls()
        return None if scale.dtype == "U8" else cls(scale_suffix="weight_scale")

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        block_n, block_k = self.block_size
        blocks = (ceil_div(linear.rows, block_n), ceil_div(linear.columns, block_k))
        return {
            "weight": TensorRule(("F8_E4M3",), ((linear.rows, linear.columns),)),
            self.scale_suffix: TensorRule(("F32", "BF16"), (blocks,)),
        }

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if self.scale_suffix in tensors:
            check_finite(f"{name}.{self.scale_suffix}", tensors[self.scale_suffix])

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Fp8BlockWeight:
        scale = tensors[self.scale_suffix].to(torch.float32)
        return Fp8BlockWeight(tensors["weight"], scale, self.block_size)

    def __str__(self) -> str:
        return f"{self.name} with blocks of {self.block_size[0]} x {self.block_size[1]}"


def quantize(
    weight: torch.Tensor, block_size: tuple[int, int] = (128, 128)
) -> dict[str, torch.Tensor]:
    """float32 [N, K] -> file tensors; each block's largest magnitude becomes 448."""
    rows, columns = weight.shape
    block_n, block_k = block_size
    row_block = torch.arange(rows) // block_n
    column_block = torch.arange(columns) // block_k
    index = row_block[:, None] * ceil_div(columns, block_k) + column_block
    blocks = ceil_div(rows, block_n), ceil_div(columns, block_k)
    amax = torch.zeros(blocks[0] * blocks[1])
    amax.scatter_reduce_(0, index.flatten(), weight.abs().flatten(), "amax")
    scale = torch.where(amax > 0, amax / E4M3_MAX, 1.0)
    scaled = (weight / scale[index]).clamp(-E4M3_MAX, E4M3_MAX)
    return {"weight": scaled.to(torch.float8_e4m3fn), "weight_scale_inv": scale.view(blocks)}
