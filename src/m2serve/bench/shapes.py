"""Shapes a benchmark can be run at without a checkpoint."""

from __future__ import annotations

from dataclasses import replace

from m2serve.errors import UsageError
from m2serve.spec.shape import ModelShape

# The released models; the real widths, with as many layers as fit.
M2_5 = ModelShape(
    hidden_size=3072,
    num_hidden_layers=62,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    rotary_dim=64,
    rope_theta=5_000_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=1536,
    num_local_experts=256,
    num_experts_per_tok=8,
    vocab_size=200_064,
    max_position_embeddings=196_608,
)

# Small enough for any machine and for every peer, with M2's proportions.
MID = ModelShape(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
    rotary_dim=32,
    rope_theta=5_000_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=384,
    num_local_experts=64,
    num_experts_per_tok=8,
    vocab_size=32_000,
    max_position_embeddings=196_608,
)

# Starts in a moment anywhere: for a look at the fixed cost of a step.
MINIATURE = ModelShape(
    hidden_size=256,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    rotary_dim=32,
    rope_theta=5_000_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=128,
    num_local_experts=16,
    num_experts_per_tok=4,
    vocab_size=4096,
    max_position_embeddings=4096,
)

SHAPES = {"m2.5": M2_5, "mid": MID, "miniature": MINIATURE}


def named_shape(name: str, num_layers: int | None = None) -> ModelShape:
    """A shape of SHAPES, with another number of layers if given; raises UsageError."""
    if name not in SHAPES:
        raise UsageError(f"shape {name!r} is unknown; one of {', '.join(SHAPES)}")
    shape = SHAPES[name]
    if num_layers is None:
        return shape
    if num_layers < 1:
        raise UsageError(f"--layers is {num_layers}; at least 1 is needed")
    return replace(shape, num_hidden_layers=num_layers)
