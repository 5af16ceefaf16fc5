"""FP8 E4M3 with one scale a block, the format of the official releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
import torch.nn.functional as F

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
    """float32 [N, K], finite -> file tensors; each block's largest magnitude becomes 448.

    A value w of a block with scale s becomes one within max(|w| / 16, s / 1024) of it.
    """
    blocks = as_blocks(weight, block_size)
    amax = blocks.abs().amax(3).amax(1)
    # Dividing by a subnormal scale would overflow; 2^-126 keeps such a block near zero instead.
    scale = (amax / E4M3_MAX).clamp_(min=torch.finfo(torch.float32).tiny)
    scale[amax == 0] = 1.0
    scaled = (blocks / scale[:, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX)
    codes = from_blocks(scaled.to(torch.float8_e4m3fn), weight.shape)
    return {"weight": codes, "weight_scale_inv": scale}


def as_blocks(matrix: torch.Tensor, block_size: tuple[int, int]) -> torch.Tensor:
    """[N, K] as [ceil(N / n), n, ceil(K / k), k], filled up with zeros; a copy only if ragged."""
    (rows, columns), (block_n, block_k) = matrix.shape, block_size
    padded = F.pad(matrix, (0, -columns % block_k, 0, -rows % block_n))
    return padded.unflatten(1, (-1, block_k)).unflatten(0, (-1, block_n))


def from_blocks(blocks: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The matrix of this size that `as_blocks` took apart."""
    rows, columns = size
    return blocks.flatten(2).flatten(0, 1)[:rows, :columns].contiguous()
