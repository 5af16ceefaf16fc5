"""MXFP4: E2M1 codes and a power-of-two scale (E8M0) for 32 of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch

from m2serve.checkpoint.formats.nibbles import encode_e2m1, pack_nibbles
from m2serve.checkpoint.formats.scales import check_e8m0
from m2serve.checkpoint.formats.storage import StorageFormat, TensorInfo, TensorRule
from m2serve.checkpoint.names import LinearSpec
from m2serve.checkpoint.weights import Mxfp4Weight

GROUP_SIZE = 32
E8M0_BIAS = 127
E2M1_MAX_EXPONENT = 2


@dataclass(frozen=True)
class Mxfp4(StorageFormat):
    """`weight_scale` U8 [N, K / 32] and codes U8 [N, K / 2].

    The codes are `weight_packed` in compressed-tensors and `weight` in Quark.
    """

    codes: str = field(default="weight_packed", compare=False)
    name: ClassVar[str] = "mxfp4"
    scale_suffixes: ClassVar[tuple[str, ...]] = ("weight_scale",)

    @classmethod
    def detect(cls, linear: LinearSpec, tensors: Mapping[str, TensorInfo]) -> Self | None:
        codes = "weight_packed" if "weight_packed" in tensors else "weight"
        stored, scale = tensors.get(codes), tensors.get("weight_scale")
        if stored is None or scale is None or stored.dtype != "U8":
            return None
        return cls(codes=codes) if scale.dtype in ("U8", "F8_E8M0") else None

    def rules(self, linear: LinearSpec) -> dict[str, TensorRule]:
        rows, columns = linear.rows, linear.columns
        return {
            self.codes: TensorRule(("U8",), ((rows, columns // 2),)),
            "weight_scale": TensorRule(("U8", "F8_E8M0"), ((rows, columns // GROUP_SIZE),)),
        }

    def check_scales(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if "weight_scale" in tensors:
            check_e8m0(f"{name}.weight_scale", tensors["weight_scale"].view(torch.uint8))

    def to_weight(self, linear: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> Mxfp4Weight:
        return Mxfp4Weight(tensors[self.codes], tensors["weight_scale"].view(torch.uint8))


def quantize(weight: torch.Tensor, codes: str = "weight_packed") -> dict[str, torch.Tensor]:
    """float32 [N, K] -> file tensors; exponent = floor(log2(amax)) - 2, values above 6 saturate."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // GROUP_SIZE, GROUP_SIZE)
    amax = groups.abs().amax(-1)
    exponent = torch.frexp(amax).exponent - 1 - E2M1_MAX_EXPONENT
    exponent = torch.where(amax == 0, 0, exponent).clamp(-E8M0_BIAS, E8M0_BIAS)
    scaled = torch.ldexp(groups, -exponent[..., None])
    packed = pack_nibbles(encode_e2m1(scaled).view(rows, columns))
    return {codes: packed, "weight_scale": (exponent + E8M0_BIAS).to(torch.uint8)}
