"""A quantised checkpoint gives the logits of the float32 model on what its bytes stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paged import PagedSequences
from test_parity_transformers import load, prompt, relative_error
from tiny import FORMATS, build_tiny

from m2serve.checkpoint.weights import DenseWeight
from m2serve.model.minimax_m2 import MiniMaxM2


def weight_bytes(model: MiniMaxM2) -> int:
    total = 0
    for layer in model.weights.layers:
        for weight in (layer.moe.w13, layer.moe.w2):
            parts = vars(weight).values()
            total += sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
    return total


@pytest.mark.parametrize("format", FORMATS)
def test_quantised_logits(format: str, tmp_path: Path) -> None:
    stored = build_tiny(tmp_path / "stored", format=format, seed=3)
    build_tiny(tmp_path / "dense", format="f32", state=stored.state)
    ours, dense = load(stored.folder, torch.float32), load(tmp_path / "dense", torch.float32)
    ids = prompt(40)
    [expected] = PagedSequences(dense, torch.float32).run([("a", ids)])
    [logits] = PagedSequences(ours, torch.float32).run([("a", ids)])
    assert relative_error(logits, expected) < 1e-5
    if format not in ("bf16", "f32"):
        assert not isinstance(ours.weights.layers[0].moe.w13, DenseWeight)
        assert weight_bytes(ours) < 0.3 * weight_bytes(dense)


def test_a_pruned_checkpoint(tmp_path: Path) -> None:
    """REAP leaves expert counts that are no power of two; 154 of 256, here 77 of 128."""
    sizes = {"num_local_experts": 77, "num_hidden_layers": 1}
    stored = build_tiny(tmp_path / "a", format="nvfp4-modelopt", **sizes)
    build_tiny(tmp_path / "b", format="f32", state=stored.state, **sizes)
    ids = prompt(40)
    [logits] = PagedSequences(load(tmp_path / "a", torch.float32), torch.float32).run([("a", ids)])
    [dense] = PagedSequences(load(tmp_path / "b", torch.float32), torch.float32).run([("a", ids)])
    assert relative_error(logits, dense) < 1e-5
