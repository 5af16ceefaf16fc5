"""The weights of the decoder, room by room. Letters as in kernels.reference."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import torch

from m2serve.checkpoint.weights import Weight


@dataclass(frozen=True)
class AttentionWeights:
    """The norms of q and k run over the whole projection, before the split into heads."""

    q_proj: Weight  # [Q * D, H]
    k_proj: Weight  # [G * D, H]
    v_proj: Weight  # [G * D, H]
    o_proj: Weight  # [H, Q * D]
    q_norm: torch.Tensor  # [Q * D]
    k_norm: torch.Tensor  # [G * D]


@dataclass(frozen=True)
class MoeWeights:
    gate: torch.Tensor  # float32 [E, H]
    correction_bias: torch.Tensor  # float32 [E]
    w13: Weight  # batch dims [E, 2]: gate and up, each [I, H]
    w2: Weight  # batch dims [E]: down [H, I]


@dataclass(frozen=True)
class LayerWeights:
    input_norm: torch.Tensor  # [H]
    attention: AttentionWeights
    post_attention_norm: torch.Tensor  # [H]
    moe: MoeWeights


@dataclass(frozen=True)
class ModelWeights:
    embedding: torch.Tensor  # [V, H], BF16 or the compute dtype
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [H], the compute dtype
    lm_head: Weight  # [V, H]
    # Against dense attention and head in the compute dtype, by what was requantised while loading.
    bytes_saved: int = 0
    # Rows in the order of the CPU kernels' int8 activations: nothing else can read the matrices.
    is_interleaved: bool = False

    def mark_interleaved(self) -> None:
        """The one change: what is done to the tensors cannot be undone, whoever holds them."""
        object.__setattr__(self, "is_interleaved", True)

    @property
    def dtype(self) -> torch.dtype:
        """What PyTorch computes in; matrices may be held in another one."""
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they lie in memory."""
        return _nbytes(self)


def _nbytes(part: object) -> int:
    if isinstance(part, torch.Tensor):
        return part.nbytes
    if isinstance(part, tuple):
        return sum(map(_nbytes, part))
    if is_dataclass(part):
        return sum(_nbytes(getattr(part, field.name)) for field in fields(part))
    return 0
