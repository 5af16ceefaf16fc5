"""The decoder against MiniMaxM2ForCausalLM of transformers, on checkpoints of awkward shapes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from paged import PagedSequences
from tiny import build_tiny
from transformers import MiniMaxM2ForCausalLM

from m2serve.checkpoint.reader import Checkpoint
from m2serve.model.loader import load_model
from m2serve.model.minimax_m2 import MiniMaxM2

CPU = torch.device("cpu")
SHAPES = {
    "default": {},
    "six experts of which three": {"num_local_experts": 6, "num_experts_per_tok": 3},
    "one kv head, quarter rotary": {
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rotary_dim": 8,
        "num_local_experts": 10,
        "hidden_size": 128,
    },
    "as many kv heads as heads": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
    },
}


@dataclass
class Pair:
    ours: MiniMaxM2
    theirs: MiniMaxM2ForCausalLM


def load(folder: Path, dtype: torch.dtype) -> MiniMaxM2:
    with Checkpoint.open(folder) as checkpoint:
        return load_model(checkpoint, CPU, dtype)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, seed=len(request.param), **SHAPES[request.param])
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    theirs = MiniMaxM2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = load(folder, torch.float32)
    factor = ours.shape.rotary_dim / ours.shape.head_dim
    assert theirs.config.rope_parameters["partial_rotary_factor"] == factor
    return Pair(ours, theirs.eval())


def prompt(length: int, seed: int = 0) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(1000) for _ in range(length)]


@torch.inference_mode()
def their_logits(model: MiniMaxM2ForCausalLM, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].float()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("length", [1, 2, 31, 200])
def test_float32_logits(pair: Pair, length: int) -> None:
    ids = prompt(length, seed=length)
    [ours] = PagedSequences(pair.ours, torch.float32).run([("a", ids)])
    assert relative_error(ours, their_logits(pair.theirs, ids)) < 1e-4


def test_greedy_text_over_64_tokens(pair: Pair) -> None:
    for seed in range(2):
        ids = prompt(9 + seed, seed)
        ours = PagedSequences(pair.ours, torch.float32).greedy("a", ids, 64)
        theirs = pair.theirs.generate(
            torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert ours == theirs[0, len(ids) :].tolist()


def test_chunked_prefill_is_whole_prefill(pair: Pair) -> None:
    ids = prompt(60)
    [whole] = PagedSequences(pair.ours, torch.float32).run([("a", ids)])
    chunked = PagedSequences(pair.ours, torch.float32)
    pieces, start = [], 0
    for size in (1, 7, 4, 23, 1, 24):
        [logits] = chunked.run([("a", ids[start : start + size])])
        pieces.append(logits)
        start += size
    assert relative_error(torch.cat(pieces), whole) < 1e-5


def test_company_does_not_change_a_sequence(pair: Pair) -> None:
    """One step with a prefill, a continued prefill and two decodes of different length."""
    texts = {"a": prompt(30, 1), "b": prompt(13, 2), "c": prompt(50, 3), "d": prompt(3, 4)}
    alone = {
        name: PagedSequences(pair.ours, torch.float32).run([("x", ids)])[0]
        for name, ids in texts.items()
    }
    together = PagedSequences(pair.ours, torch.float32)
    together.run([("a", texts["a"][:-1]), ("b", texts["b"][:-1]), ("c", texts["c"][:20])])
    step = [
        ("c", texts["c"][20:]),
        ("a", texts["a"][-1:]),
        ("d", texts["d"]),
        ("b", texts["b"][-1:]),
    ]
    for (name, _), logits in zip(step, together.run(step), strict=True):
        assert relative_error(logits[-1], alone[name][-1]) < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_bf16_is_no_further_from_float32_than_transformers(name: str, tmp_path: Path) -> None:
    """One layer deep: further down, a rounding that tips one expert into the top k moves every
    later logit, in either implementation, and says nothing about the arithmetic."""
    build_tiny(tmp_path, **{**SHAPES[name], "num_hidden_layers": 1})
    ids = prompt(120, seed=5)
    loaded = {
        dtype: MiniMaxM2ForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
        for dtype in (torch.float32, torch.bfloat16)
    }
    exact = their_logits(loaded[torch.float32], ids)
    theirs = their_logits(loaded[torch.bfloat16], ids)
    [ours] = PagedSequences(load(tmp_path, torch.bfloat16), torch.bfloat16).run([("a", ids)])
    assert token_error(ours, exact) < 1.05 * token_error(theirs, exact)


def test_bf16_stays_near_float32_through_all_layers(folder: Path, pair: Pair) -> None:
    ids = prompt(120, seed=5)
    [ours] = PagedSequences(load(folder, torch.bfloat16), torch.bfloat16).run([("a", ids)])
    assert token_error(ours, their_logits(pair.theirs, ids)) < 0.05


def token_error(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """Median over tokens of the error's length relative to the logits'."""
    return float(((logits - exact).norm(dim=-1) / exact.norm(dim=-1)).median())
