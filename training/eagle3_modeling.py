"""The Eagle3 draft of the miniature: one Llama layer over three taps of the target.

Letters as in modeling.py; B documents of length L in a block, Vd draft vocabulary. At index i the
draft reads the token behind i and what the target felt at i, and foresees the token after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from training.modeling import Block, apply_rotary, rms_norm

Streams = list[torch.Tensor]


@dataclass(frozen=True)
class DraftShape:
    """`taps` are capture ids: the residual stream entering these layers of the target."""

    hidden_size: int = 256
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 512
    draft_vocab_size: int = 2048
    taps: tuple[int, ...] = (1, 2, 4)
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim


class EagleDraft(nn.Module):
    """Parameters carry the names of the published layout, without ".weight"."""

    def __init__(self, shape: DraftShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        hidden, width = shape.hidden_size, shape.intermediate_size

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * columns**-0.5)

        self.fc = matrix(hidden, len(shape.taps) * hidden)
        self.midlayer = nn.ParameterDict(
            {
                "input_layernorm": nn.Parameter(torch.ones(hidden)),
                "hidden_norm": nn.Parameter(torch.ones(hidden)),
                "post_attention_layernorm": nn.Parameter(torch.ones(hidden)),
                "q_proj": matrix(shape.q_size, 2 * hidden),
                "k_proj": matrix(shape.kv_size, 2 * hidden),
                "v_proj": matrix(shape.kv_size, 2 * hidden),
                "o_proj": matrix(hidden, shape.q_size),
                "gate_proj": matrix(width, hidden),
                "up_proj": matrix(width, hidden),
                "down_proj": matrix(hidden, width),
            }
        )
        self.norm = nn.Parameter(torch.ones(hidden))
        self.lm_head = matrix(shape.draft_vocab_size, hidden)
        exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        positions = torch.arange(shape.max_position_embeddings).float()
        angles = positions[:, None, None] / shape.rope_theta**exponents
        self.cos: torch.Tensor  # [max positions, 1, D / 2]
        self.sin: torch.Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def unroll(
        self, taps_BLH: torch.Tensor, embeds_BLH: torch.Tensor, num_steps: int
    ) -> list[torch.Tensor]:
        """Hidden states [B, L, H] of each draft step; `embeds` are those of the next tokens.

        Step 0 reads the target's taps [B, L, taps * H]. Step j at index i reads step j - 1 at
        i - 1, as when the draft goes on by itself, and sees step 0 up to i - j and its own chain.
        """
        keys: Streams = []
        values: Streams = []
        hidden: list[torch.Tensor] = []
        for step in range(num_steps):
            g_BLH = F.linear(taps_BLH, self.fc) if step == 0 else _shift(hidden[-1], 1)
            hidden.append(self._layer(g_BLH, embeds_BLH, keys, values, step))
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 over the draft vocabulary."""
        normed = rms_norm(hidden, self.norm, self.shape.rms_norm_eps)
        return F.linear(normed, self.lm_head).float()

    def _layer(
        self,
        g_BLH: torch.Tensor,
        embeds_BLH: torch.Tensor,
        keys: Streams,
        values: Streams,
        step: int,
    ) -> torch.Tensor:
        """The residual is the un-normed g. Appends this step's keys and values."""
        layer, eps = self.midlayer, self.shape.rms_norm_eps
        normed = (
            rms_norm(embeds_BLH, layer["input_layernorm"], eps),
            rms_norm(g_BLH, layer["hidden_norm"], eps),
        )
        x = torch.cat(normed, -1)
        q = self._rotated(F.linear(x, layer["q_proj"]))
        keys.append(self._rotated(F.linear(x, layer["k_proj"])))
        values.append(F.linear(x, layer["v_proj"]).unflatten(-1, (-1, self.shape.head_dim)))
        attended = _chain_attention(q, keys, values, step)
        r_BLH = g_BLH + F.linear(attended.flatten(2), layer["o_proj"])
        x = rms_norm(r_BLH, layer["post_attention_layernorm"], eps)
        gated = F.silu(F.linear(x, layer["gate_proj"])) * F.linear(x, layer["up_proj"])
        return r_BLH + F.linear(gated, layer["down_proj"])

    def _rotated(self, x_BLH: torch.Tensor) -> torch.Tensor:
        length = x_BLH.shape[1]
        x = x_BLH.unflatten(-1, (-1, self.shape.head_dim))
        return apply_rotary(x, self.cos[:length], self.sin[:length])


def _chain_attention(
    q_BLQD: torch.Tensor, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], step: int
) -> torch.Tensor:
    """Over step 0 up to index i - step, and over one key of each later step: the chain's own."""
    length = q_BLQD.shape[1]
    group = q_BLQD.shape[2] // keys[0].shape[2]
    scale = q_BLQD.shape[3] ** -0.5
    k0, v0 = (x[0].repeat_interleave(group, 2) for x in (keys, values))
    index = torch.arange(length, device=q_BLQD.device)
    is_seen = index[:, None] - step >= index[None]
    scores = torch.einsum("biqd,bjqd->bqij", q_BLQD, k0).float() * scale
    parts = [scores.masked_fill(~is_seen, -torch.inf)]
    chain_values = []
    for other in range(1, step + 1):
        k, v = (_shift(x[other].repeat_interleave(group, 2), step - other) for x in (keys, values))
        parts.append((q_BLQD * k).sum(-1).float().transpose(1, 2)[..., None] * scale)
        chain_values.append(v)
    weights = torch.cat(parts, -1).softmax(-1).to(q_BLQD.dtype)
    out = torch.einsum("bqij,bjqd->biqd", weights[..., :length], v0)
    for number, v in enumerate(chain_values):
        out = out + weights[..., length + number].transpose(1, 2)[..., None] * v
    return out


def _shift(x: torch.Tensor, count: int) -> torch.Tensor:
    """Along dim 1 towards later indices; zeros come in."""
    if not count:
        return x
    return torch.cat([torch.zeros_like(x[:, :count]), x[:, :-count]], 1)


def by_block(x_TH: torch.Tensor, blocks: Sequence[Block]) -> list[torch.Tensor]:
    """Flat rows as one [B, L, ...] tensor a block."""
    sizes = [block.count * block.length for block in blocks]
    pairs = zip(blocks, x_TH.split(sizes), strict=True)
    return [x.unflatten(0, (block.count, block.length)) for block, x in pairs]
