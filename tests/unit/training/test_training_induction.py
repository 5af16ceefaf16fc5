"""The starting values look the right way before any training."""

import torch
import torch.nn.functional as F

from training.induction import lay_out_induction
from training.modeling import Block, MiniatureM2, apply_rotary, rms_norm
from training.train import SHAPE

LENGTH = 40


def _attention_of_head_0(model: MiniatureM2, index: int, stream: torch.Tensor) -> torch.Tensor:
    """Probabilities [T, T] of the first query head."""
    layer, num_tokens = model.layers[index], stream.shape[0]
    weights = layer.self_attn
    normed = rms_norm(stream, layer.input_layernorm, 1e-6)
    rotary = (model.cos[:num_tokens], model.sin[:num_tokens])
    heads = []
    for projection, norm in (("q_proj", "q_norm"), ("k_proj", "k_norm")):
        x = rms_norm(
            F.linear(normed, getattr(weights, projection)), getattr(weights, norm), 1e-6
        ).unflatten(1, (-1, SHAPE.head_dim))
        heads.append(apply_rotary(x, *rotary)[:, 0])
    scores = heads[0] @ heads[1].T / SHAPE.head_dim**0.5
    hidden = torch.ones(num_tokens, num_tokens).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _mean_attention(is_laid_out: bool) -> tuple[float, float]:
    """On what one sees twice: to the token before, and to what followed the first time."""
    model = MiniatureM2(SHAPE, torch.Generator().manual_seed(0))
    if is_laid_out:
        lay_out_induction(model, torch.Generator().manual_seed(1))
    once = torch.randint(0, 4000, (LENGTH,), generator=torch.Generator().manual_seed(2))
    token_ids = once.repeat(2)
    real = torch.ones(len(token_ids), dtype=torch.bool)
    with torch.no_grad():
        streams, _ = model.residuals(token_ids, (Block(1, len(token_ids)),), real)
        back = _attention_of_head_0(model, 0, streams[0]).diagonal(-1)
        follows = _attention_of_head_0(model, 1, streams[1]).diagonal(1 - LENGTH)
    return float(back.mean()), float(follows[1:].mean())


def test_laid_out_heads_look_back_and_at_what_followed() -> None:
    back, follows = _mean_attention(is_laid_out=True)
    assert back > 0.8
    assert follows > 0.3


def test_random_heads_do_not() -> None:
    back, follows = _mean_attention(is_laid_out=False)
    assert back < 0.1
    assert follows < 0.1


def _copied(is_laid_out: bool) -> float:
    """Share of tokens, of what one sees twice, that are the likeliest the second time."""
    model = MiniatureM2(SHAPE, torch.Generator().manual_seed(0))
    if is_laid_out:
        lay_out_induction(model, torch.Generator().manual_seed(1))
    once = torch.randperm(SHAPE.vocab_size, generator=torch.Generator().manual_seed(2))[:200]
    rows = torch.arange(len(once), 2 * len(once) - 1)
    with torch.no_grad():
        real = torch.ones(2 * len(once), dtype=torch.bool)
        logits = model(once.repeat(2), (Block(1, len(real)),), rows, real).logits
    return float((logits.argmax(1) == once[1:]).float().mean())


def test_any_token_is_copied_before_training() -> None:
    assert _copied(is_laid_out=True) > 0.6
    assert _copied(is_laid_out=False) < 0.05
