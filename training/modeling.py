"""MiniMax-M2 in plain differentiable PyTorch, for training; `m2serve.model` is the one that serves.

Same mathematics and, through `checkpoint_tensors`, the same tensor names. Letters: T tokens of the
step, H hidden size, Q query heads, G key/value heads, D head size, E experts, k experts a token,
I expert width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from m2serve.spec.shape import ModelShape
from training import tile_attention
from training.attention import attend
from training.experts import run_experts
from training.precision import computing_in, fused, is_mixed_on_cpu


@dataclass(frozen=True)
class Block:
    """`count` documents of `length` tokens (shorter ones padded behind), one after the other."""

    count: int
    length: int


@dataclass(frozen=True)
class Forward:
    """`logits` float32 of the rows asked for; `loads` counts tokens per expert, [L, E]."""

    logits: torch.Tensor
    loads: torch.Tensor


class MiniatureM2(nn.Module):
    """The decoder over documents laid end to end; each attends only to itself.

    Weights are float32 and products in `compute_dtype`, see `precision.py`.
    """

    def __init__(
        self,
        shape: ModelShape,
        generator: torch.Generator,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        hidden = shape.hidden_size
        self.embed_tokens = _normal((shape.vocab_size, hidden), 0.5, generator)
        self.layers = nn.ModuleList(
            DecoderLayer(shape, generator) for _ in range(shape.num_hidden_layers)
        )
        self.norm = nn.Parameter(torch.ones(hidden))
        self.lm_head = _normal((shape.vocab_size, hidden), 0.5 * hidden**-0.5, generator)
        self.head_map = nn.Parameter(torch.zeros(hidden, hidden))
        exponents = torch.arange(0, shape.rotary_dim, 2).float() / shape.rotary_dim
        positions = torch.arange(shape.max_position_embeddings).float()
        angles = positions[:, None, None] / shape.rope_theta**exponents
        self.cos: torch.Tensor  # [max positions, 1, R / 2]
        self.sin: torch.Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self,
        token_ids_T: torch.Tensor,
        blocks: Sequence[Block],
        logits_rows: torch.Tensor,
        is_real_T: torch.Tensor,
    ) -> Forward:
        """Padding (`is_real_T` False) is computed and ignored: no load, no one attends to it."""
        streams, loads = self.residuals(token_ids_T, blocks, is_real_T)
        return Forward(self.head(streams[-1][logits_rows]), loads)

    @property
    def wants_few_sizes(self) -> bool:
        """Whether batches are to be padded to few sizes (`batches.in_few_sizes`)."""
        return self.norm.device.type == "cpu" and self.compute_dtype == torch.bfloat16

    @property
    def attends_in_tiles(self) -> bool:
        return self.wants_few_sizes and tile_attention.is_available(self.shape.head_dim)

    def head(self, x_RH: torch.Tensor) -> torch.Tensor:
        """Float32 logits [R, V] of the residual stream behind the last layer."""
        with computing_in(self.compute_dtype, x_RH.device):
            normed = rms_norm(x_RH, self.norm, self.shape.rms_norm_eps)
            return F.linear(normed, self.head_weight()).float()

    def head_weight(self) -> torch.Tensor:
        """[V, H], what a checkpoint calls `lm_head`: a row of the token's own and one mapped from
        its embedding.

        With the map, saying a token that is only ever read is learnt from the others; with rows of
        their own alone, such tokens were never copied. The embedding itself learns from reading.
        """
        return self.lm_head + F.linear(self.embed_tokens.detach(), self.head_map)

    def residuals(
        self, token_ids_T: torch.Tensor, blocks: Sequence[Block], is_real_T: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residual stream entering each layer and behind the last, [T, H] each; the loads."""
        positions = torch.cat(
            [torch.arange(b.length, device=token_ids_T.device).repeat(b.count) for b in blocks]
        )
        rotary = (self.cos[positions], self.sin[positions])
        streams = [F.embedding(token_ids_T, self.embed_tokens)]
        loads = []
        with computing_in(self.compute_dtype, token_ids_T.device):
            for layer in self.layers:
                x_TH, load = layer(streams[-1], blocks, rotary, is_real_T)
                streams.append(x_TH)
                loads.append(load)
        return streams, torch.stack(loads)


class DecoderLayer(nn.Module):
    def __init__(self, shape: ModelShape, generator: torch.Generator) -> None:
        super().__init__()
        self.eps = shape.rms_norm_eps
        self.input_layernorm = nn.Parameter(torch.ones(shape.hidden_size))
        self.post_attention_layernorm = nn.Parameter(torch.ones(shape.hidden_size))
        self.self_attn = Attention(shape, generator)
        self.block_sparse_moe = SparseMoe(shape, generator)

    def forward(
        self,
        x_TH: torch.Tensor,
        blocks: Sequence[Block],
        rotary: tuple[torch.Tensor, torch.Tensor],
        is_real_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed = rms_norm(x_TH, self.input_layernorm, self.eps)
        x_TH = x_TH + self.self_attn(normed, blocks, rotary)
        normed = rms_norm(x_TH, self.post_attention_layernorm, self.eps)
        y_TH, load = self.block_sparse_moe(normed, is_real_T)
        return x_TH + y_TH, load


class Attention(nn.Module):
    """q and k are normalised over the whole projection, before the split into heads."""

    def __init__(self, shape: ModelShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        hidden, std = shape.hidden_size, shape.hidden_size**-0.5
        self.q_proj = _normal((shape.q_size, hidden), std, generator)
        self.k_proj = _normal((shape.kv_size, hidden), std, generator)
        self.v_proj = _normal((shape.kv_size, hidden), std, generator)
        self.o_proj = nn.Parameter(torch.zeros(hidden, shape.q_size))
        self.q_norm = nn.Parameter(torch.ones(shape.q_size))
        self.k_norm = nn.Parameter(torch.ones(shape.kv_size))

    def forward(
        self,
        x_TH: torch.Tensor,
        blocks: Sequence[Block],
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        head_dim, eps = self.shape.head_dim, self.shape.rms_norm_eps
        prepare = _prepare_fused if is_mixed_on_cpu(x_TH) else _prepare
        q = prepare(F.linear(x_TH, self.q_proj), self.q_norm, eps, head_dim, *rotary)
        k = prepare(F.linear(x_TH, self.k_proj), self.k_norm, eps, head_dim, *rotary)
        v = F.linear(x_TH, self.v_proj).unflatten(1, (-1, head_dim))
        attended = attend(q, k, v, [(block.count, block.length) for block in blocks])
        return F.linear(attended, self.o_proj)


class SparseMoe(nn.Module):
    """Sigmoid router; its correction bias takes part in the choice only. No shared expert."""

    def __init__(self, shape: ModelShape, generator: torch.Generator) -> None:
        super().__init__()
        experts, hidden, width = (
            shape.num_local_experts,
            shape.hidden_size,
            shape.intermediate_size,
        )
        self.top_k = shape.num_experts_per_tok
        self.gate = _normal((experts, hidden), 0.5 * hidden**-0.5, generator)
        self.w13 = _normal((experts, 2, width, hidden), hidden**-0.5, generator)
        self.w2 = nn.Parameter(torch.zeros(experts, hidden, width))
        self.e_score_correction_bias: torch.Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))

    def forward(
        self, x_TH: torch.Tensor, is_real_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the output and how many real tokens each expert got."""
        weights_Tk, ids_Tk = self.route(x_TH)
        load = torch.zeros(self.gate.shape[0], device=x_TH.device)
        load.index_add_(0, ids_Tk.flatten(), is_real_T.float().repeat_interleave(self.top_k))
        if is_mixed_on_cpu(x_TH):
            return run_experts(x_TH, weights_Tk, ids_Tk, self.w13, self.w2), load
        return self.combine(x_TH, weights_Tk, ids_Tk), load

    def route(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(x_TH.device.type, enabled=False):
            scores = torch.sigmoid(F.linear(x_TH.float(), self.gate))
        ids = torch.topk(scores.detach() + self.e_score_correction_bias, self.top_k).indices
        weights = scores.gather(1, ids)
        return weights / weights.sum(1, keepdim=True), ids

    def combine(
        self, x_TH: torch.Tensor, weights_Tk: torch.Tensor, ids_Tk: torch.Tensor
    ) -> torch.Tensor:
        """Tokens sorted by expert, one pair of matrix products for each expert."""
        flat = ids_Tk.flatten()
        order = flat.argsort(stable=True)
        token = order // self.top_k
        counts = torch.bincount(flat, minlength=self.gate.shape[0]).tolist()
        sorted_x = x_TH.index_select(0, token).split(counts)
        scales = weights_Tk.flatten()[order, None].split(counts)
        outputs = []
        parts = zip(sorted_x, scales, self.w13.unbind(), self.w2.unbind(), strict=True)
        for rows, scale, w13, w2 in parts:
            gate, up = F.linear(rows, w13.flatten(0, 1)).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate) * (up * scale.to(up.dtype)), w2))
        out = torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
        return out.index_add(0, token, torch.cat(outputs).float())


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if is_mixed_on_cpu(x):
        return _rms_norm_fused(x, weight, eps)
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def _rms_norm_bfloat16(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).bfloat16()


_rms_norm_fused = fused(_rms_norm_bfloat16)


def _prepare(
    x_TP: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    head_dim: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """A projection as normalised and rotated heads."""
    return apply_rotary(rms_norm(x_TP, weight, eps).unflatten(1, (-1, head_dim)), cos, sin)


@fused
def _prepare_fused(
    x_TP: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    head_dim: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    heads = _rms_norm_bfloat16(x_TP, weight, eps).unflatten(1, (-1, head_dim))
    return apply_rotary(heads, cos, sin)


def apply_rotary(x_TQD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + R/2) of the first R dims of each head; the others pass through."""
    half = cos.shape[-1]
    first, second, rest = x_TQD.split([half, half, x_TQD.shape[-1] - 2 * half], -1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([rotated.to(x_TQD.dtype), rest], -1)


def checkpoint_tensors(model: MiniatureM2) -> dict[str, torch.Tensor]:
    """The weights under MiniMax-M2's tensor names; views, but for the head."""
    tensors = {
        "model.embed_tokens.weight": model.embed_tokens.detach(),
        "model.norm.weight": model.norm.detach(),
        "lm_head.weight": model.head_weight().detach(),
    }
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        at = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = getattr(layer, name).detach()
        for name, parameter in layer.self_attn.named_parameters():
            tensors[f"{at}self_attn.{name}.weight"] = parameter.detach()
        moe = layer.block_sparse_moe
        tensors[f"{at}block_sparse_moe.gate.weight"] = moe.gate.detach()
        tensors[f"{at}block_sparse_moe.e_score_correction_bias"] = moe.e_score_correction_bias
        for expert in range(moe.gate.shape[0]):
            to = f"{at}block_sparse_moe.experts.{expert}."
            tensors[f"{to}w1.weight"] = moe.w13[expert, 0].detach()
            tensors[f"{to}w3.weight"] = moe.w13[expert, 1].detach()
            tensors[f"{to}w2.weight"] = moe.w2[expert].detach()
    return tensors


def load_checkpoint_tensors(model: MiniatureM2, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights of a checkpoint into the model; raises KeyError for a missing name."""
    with torch.no_grad():
        for name, tensor in checkpoint_tensors(model).items():
            tensor.copy_(tensors[name])
        model.lm_head.copy_(tensors["lm_head.weight"])
        model.head_map.zero_()


def num_parameters(shape: ModelShape) -> int:
    """Numbers in the checkpoint, correction biases included."""
    hidden, experts = shape.hidden_size, shape.num_local_experts
    attention = 2 * hidden * (shape.q_size + shape.kv_size) + shape.q_size + shape.kv_size
    moe = experts * (hidden + 1 + 3 * hidden * shape.intermediate_size)
    layer = attention + moe + 2 * hidden
    return shape.num_hidden_layers * layer + 2 * shape.vocab_size * hidden + hidden


def _normal(size: tuple[int, ...], std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(size, generator=generator) * std)
