"""What sets M2 apart, done as other models do it, must not pass for M2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from paged import PagedSequences
from test_parity_transformers import load, prompt, relative_error, their_logits
from tiny import build_tiny
from transformers import MiniMaxM2ForCausalLM

from m2serve.kernels import reference
from m2serve.kernels.dispatch import Kernels
from m2serve.model.minimax_m2 import MiniMaxM2

HEAD_DIM = 64
PROJECTIONS = (6 * HEAD_DIM, 2 * HEAD_DIM)


def norm_of_each_head(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if len(weight) not in PROJECTIONS:
        return reference.rms_norm(x, weight, eps)
    ones = torch.ones(HEAD_DIM)
    return reference.rms_norm(x.unflatten(-1, (-1, HEAD_DIM)), ones, eps).flatten(-2) * weight


def no_norm_of_projections(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x if len(weight) in PROJECTIONS else reference.rms_norm(x, weight, eps)


def rotary_of_the_whole_head(
    positions: torch.Tensor, rotary_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.rotary_cos_sin(positions, HEAD_DIM, theta)


def rotary_of_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs (2i, 2i + 1) in place of (i, i + R/2)."""
    size = 2 * cos.shape[-1]
    apart = x[..., :size].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    turned = reference.apply_rotary(torch.cat([apart, x[..., size:]], -1), cos, sin)
    together = turned[..., :size].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return torch.cat([together, x[..., size:]], -1)


def softmax_router(
    x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = (torch.softmax(F.linear(x, gate), -1) + bias).topk(top_k)
    return weights / weights.sum(-1, keepdim=True), ids


def biased_weights(
    x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = (torch.sigmoid(F.linear(x, gate)) + bias).topk(top_k)
    return weights / weights.sum(-1, keepdim=True), ids


def no_bias(
    x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.route(x, gate, torch.zeros_like(bias), top_k)


def weights_that_do_not_add_up_to_one(
    x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    _, ids = reference.route(x, gate, bias, top_k)
    return torch.sigmoid(F.linear(x, gate)).gather(-1, ids), ids


MISTAKES: dict[Callable[..., object], str] = {
    norm_of_each_head: "rms_norm",
    no_norm_of_projections: "rms_norm",
    rotary_of_the_whole_head: "rotary_cos_sin",
    rotary_of_neighbours: "apply_rotary",
    softmax_router: "route",
    biased_weights: "route",
    no_bias: "route",
    weights_that_do_not_add_up_to_one: "route",
}


@pytest.fixture(scope="module")
def ours_and_their_logits(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[MiniMaxM2, torch.Tensor]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, seed=4)
    theirs = MiniMaxM2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return load(folder, torch.float32), their_logits(theirs, prompt(40))


def error_with(model: MiniMaxM2, kernels: Kernels, expected: torch.Tensor) -> float:
    changed = MiniMaxM2(model.shape, model.weights, kernels)
    [logits] = PagedSequences(changed, torch.float32).run([("a", prompt(40))])
    return relative_error(logits, expected)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_shows(
    mistake: Callable[..., object], ours_and_their_logits: tuple[MiniMaxM2, torch.Tensor]
) -> None:
    model, expected = ours_and_their_logits
    assert error_with(model, model.kernels, expected) < 1e-4
    wrong = dataclasses.replace(model.kernels, **{MISTAKES[mistake]: mistake})
    assert error_with(model, wrong, expected) > 1e-2
