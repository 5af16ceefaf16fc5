"""A start from which copying is learnt in minutes: two attention heads that already look the right
way, and an output head that knows what the second has read.

Copying, and with it tool arguments and needles, waits for an induction head: one head that looks at
the previous token, and one in a later layer that looks for the place where the present token was
the previous one (Olsson et al. 2022). From random weights the pair had not formed after three
million tokens; here it is laid out before the first step and training does the rest. Only the
starting values differ: the architecture has nothing extra.

Column 0 of the embedding starts as a constant, so that a head can have a query that depends on the
position alone.
"""

from __future__ import annotations

import torch

from training.modeling import Attention, DecoderLayer, MiniatureM2

CONSTANT = 2.0  # of the embedding's column 0; the others have a deviation of 0.5
# Of the pairs that rotate fastest: together they peak one token back, and nowhere near so high
# within some thousand tokens.
PREVIOUS_TOKEN_WEIGHTS = (8.0, 6.0, 4.0, 4.0, 3.0)
MATCH_WEIGHT = 4.0
SAID_NORM = 1.0  # of the part of a row of the head that comes from the embedding
KEPT = 0.3  # of the random weights of the matching head's rotating dims


@torch.no_grad()
def lay_out_induction(model: MiniatureM2, generator: torch.Generator) -> None:
    """Head 0 of layer 0 looks one token back; head 0 of layer 1 at what followed the same token."""
    first, second = (_attention(model, index) for index in (0, 1))
    model.embed_tokens[:, 0] = CONSTANT
    root_mean_square = float(model.embed_tokens.pow(2).mean(1).sqrt().mean())
    _look_back(first, model, CONSTANT / root_mean_square)
    _write(first, model, generator)
    _match(first, second, model)
    _write(second, model, generator)
    _say(second, model)


def _look_back(attention: Attention, model: MiniatureM2, constant: float) -> None:
    """Query and key of head 0 read the constant only; the query is turned back by one position."""
    head, half = model.shape.head_dim, model.shape.rotary_dim // 2
    angles = model.shape.rope_theta ** (-torch.arange(half).float() / half)
    weights = torch.zeros(half)
    weights[: len(PREVIOUS_TOKEN_WEIGHTS)] = torch.tensor(PREVIOUS_TOKEN_WEIGHTS) / constant
    attention.q_proj[:head] = 0
    attention.k_proj[:head] = 0
    attention.q_proj[:half, 0] = weights * angles.cos()
    attention.q_proj[half : 2 * half, 0] = -weights * angles.sin()
    attention.k_proj[:half, 0] = weights


def _write(attention: Attention, model: MiniatureM2, generator: torch.Generator) -> None:
    """What head 0 reads, as far as its numbers hold it, goes to the residual stream; the others
    start silent."""
    size = (model.shape.hidden_size - 1, model.shape.head_dim)
    read, written = torch.randn((2, *size), generator=generator)
    attention.v_proj[: size[1], 0] = 0
    attention.v_proj[: size[1], 1:] = torch.linalg.qr(read).Q.T
    attention.o_proj[0] = 0
    attention.o_proj[1:, : size[1]] = torch.linalg.qr(written).Q


def _match(first: Attention, second: Attention, model: MiniatureM2) -> None:
    """Over the dims that do not rotate: the present token, as `first` would have written it,
    against what `first` wrote at each position."""
    head, rotary = model.shape.head_dim, model.shape.rotary_dim
    second.q_proj[:rotary] *= KEPT
    second.k_proj[:rotary] *= KEPT
    still = slice(rotary, head)
    second.q_proj[still] = MATCH_WEIGHT * first.v_proj[still]
    second.k_proj[still] = MATCH_WEIGHT / 2 * first.o_proj[:, still].T
    second.q_proj[still, 0] = 0
    second.k_proj[still, 0] = 0


def _say(attention: Attention, model: MiniatureM2) -> None:
    """The head takes what head 0 of `attention` writes of a token for that token."""
    head = model.shape.head_dim
    written_HH = attention.o_proj[:, :head] @ attention.v_proj[:head]
    mapped = (model.embed_tokens @ written_HH.T).norm(dim=1).mean()
    model.head_map.copy_(SAID_NORM / mapped * written_HH)


def _attention(model: MiniatureM2, index: int) -> Attention:
    layer = model.layers[index]
    assert isinstance(layer, DecoderLayer)
    return layer.self_attn
