"""Random weights of a model in any storage format, made in memory.

The values are of the size real ones have, so nothing overflows and routing is spread; what they
say is noise.
"""

from __future__ import annotations

import math

import torch

from m2serve.checkpoint.weights import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Nvfp4Weight,
    Weight,
)
from m2serve.errors import UsageError
from m2serve.kernels.dispatch import linear_dtype
from m2serve.model.layers import AttentionWeights, LayerWeights, ModelWeights, MoeWeights
from m2serve.spec.shape import ModelShape

FORMATS = ("bf16", "fp8", "nvfp4", "mxfp4", "int4-g32", "int4-g128", "int8")
_FP8_BLOCK = 128


def dummy_weights(
    shape: ModelShape,
    format: str,
    *,
    attention_format: str = "",
    head_format: str = "",
    device: torch.device,
    dtype: torch.dtype,
) -> ModelWeights:
    """Experts, attention and head in these formats, the rest dense in `dtype`.

    As the loader does: "bf16" is BF16 where the kernels take it, else `dtype`; attention and head
    are so with "", too. Raises UsageError for an unknown format.
    """
    maker = _Maker(device, dtype)
    return ModelWeights(
        embedding=maker.dense(
            shape.vocab_size,
            shape.hidden_size,
            dtype=linear_dtype(device, torch.bfloat16, dtype),
        ),
        layers=tuple(
            _layer(maker, shape, format, attention_format) for _ in range(shape.num_hidden_layers)
        ),
        norm=maker.norm(shape.hidden_size),
        lm_head=maker.named(head_format, shape.vocab_size, shape.hidden_size),
    )


def _layer(maker: _Maker, shape: ModelShape, format: str, attention_format: str) -> LayerWeights:
    hidden, experts = shape.hidden_size, shape.num_local_experts
    return LayerWeights(
        input_norm=maker.norm(hidden),
        attention=AttentionWeights(
            q_proj=maker.named(attention_format, shape.q_size, hidden),
            k_proj=maker.named(attention_format, shape.kv_size, hidden),
            v_proj=maker.named(attention_format, shape.kv_size, hidden),
            o_proj=maker.named(attention_format, hidden, shape.q_size),
            q_norm=maker.norm(shape.q_size),
            k_norm=maker.norm(shape.kv_size),
        ),
        post_attention_norm=maker.norm(hidden),
        moe=MoeWeights(
            gate=maker.dense(experts, hidden).float(),
            correction_bias=torch.zeros(experts, device=maker.device),
            w13=maker.linear(format, (experts, 2), shape.intermediate_size, hidden),
            w2=maker.linear(format, (experts,), hidden, shape.intermediate_size),
        ),
    )


class _Maker:
    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def norm(self, size: int) -> torch.Tensor:
        return torch.ones(size, device=self.device, dtype=self.dtype)

    def dense(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        weight = torch.empty(size, device=self.device, dtype=dtype or self.dtype)
        spread = math.sqrt(3 / size[-1])
        return weight.uniform_(-spread, spread, generator=self._generator)

    def named(self, format: str, rows: int, columns: int) -> Weight:
        """A linear of attention or the head, whose format may be ""."""
        weight = self.linear(format or "bf16", (), rows, columns)
        if format == "bf16" and isinstance(weight, DenseWeight):
            return DenseWeight(weight.weight.bfloat16())
        return weight

    def linear(self, format: str, batch: tuple[int, ...], rows: int, columns: int) -> Weight:
        """Standard deviation 1 / sqrt(columns), give or take the format's own grid."""
        std = columns**-0.5
        size = (*batch, rows)
        match format:
            case "bf16":
                dtype = linear_dtype(self.device, torch.bfloat16, self.dtype)
                return DenseWeight(self.dense(*size, columns, dtype=dtype))
            case "fp8":
                codes = self._codes(*size, columns) & 0xBF  # below 2: no NaN, no outliers
                blocks = (-(-rows // _FP8_BLOCK), -(-columns // _FP8_BLOCK))
                scale = torch.full((*batch, *blocks), std, device=self.device)
                return Fp8BlockWeight(codes.view(torch.float8_e4m3fn), scale)
            case "nvfp4":
                scale = torch.ones(*size, columns // 16, device=self.device)
                return Nvfp4Weight(
                    self._codes(*size, columns // 2),
                    scale.to(torch.float8_e4m3fn),
                    torch.full(batch, std / 3, device=self.device),
                )
            case "mxfp4":
                exponent = 127 + round(math.log2(std / 3))
                scale_bytes = torch.full(
                    (*size, columns // 32), exponent, dtype=torch.uint8, device=self.device
                )
                return Mxfp4Weight(self._codes(*size, columns // 2), scale_bytes)
            case "int4-g32" | "int4-g128":
                group = int(format.removeprefix("int4-g"))
                scale = torch.full((*size, columns // group), std / 4.6, device=self.device)
                packed = self._codes(*size, columns // 2)
                packed |= 0x11  # odd codes: -7 to 7, of mean 0
                return Int4Weight(packed, scale.to(torch.bfloat16), None, group)
            case "int8":
                codes = self._codes(*size, columns)
                codes |= 1  # odd: of mean 0
                return Int8Weight(
                    codes.view(torch.int8), torch.full(size, std / 74, device=self.device)
                )
        raise UsageError(f"format {format!r} is unknown; one of {', '.join(FORMATS)}")

    def _codes(self, *size: int) -> torch.Tensor:
        # Random bits eight bytes at a time: a layer of the real model has billions of codes.
        # Words of either sign: else every eighth byte is below 128, which all rows have in common,
        # and most tokens are sent to the same few experts.
        words = torch.empty(-(-math.prod(size) // 8), dtype=torch.int64, device=self.device)
        words.random_(-(2**63), 2**63 - 1, generator=self._generator)
        return words.view(torch.uint8)[: math.prod(size)].view(size)
