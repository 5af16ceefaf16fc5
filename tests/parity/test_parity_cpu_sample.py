"""The native choice of tokens against the definition in PyTorch."""

from __future__ import annotations

import math
import random

import pytest
import torch

from m2serve.engine.token_choice import MAX_CANDIDATES, Choice, choose_among_candidates
from m2serve.kernels.cpu_sample import make_cpu_sampler

NATIVE = make_cpu_sampler()
if NATIVE is None:
    pytest.skip("no native kernels here", allow_module_level=True)

GREEDY = (1.0, 0.0, 1, 1.0, 0.0)


def rows_of(num_rows: int, vocab: int, scale: float, seed: int) -> torch.Tensor:
    """In bfloat16's steps, so that equal logits are common; some banned."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab, generator=generator) * scale
    logits[torch.rand(num_rows, vocab, generator=generator) < 0.1] = -math.inf
    logits[:, vocab // 2] = 0.5
    return logits.bfloat16().float()


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 129, 4100, 32_000, 200_064])
@pytest.mark.parametrize("scale", [0.0, 0.2, 3.0, 30.0])
def test_the_same_tokens(vocab: int, scale: float) -> None:
    rng = random.Random(vocab + scale)
    logits = rows_of(24 if vocab < 5000 else 3, vocab, scale, seed=vocab)
    choices = [
        (
            rng.choice([1e-5, 0.3, 1.0, 2.0]),
            rng.choice([0.0, 0.0, 0.05, 0.9, 1.0]),
            min(vocab, rng.choice([1, 2, 40, 63, 64, 65, 1000, MAX_CANDIDATES])),
            rng.choice([1.0, 0.95, 0.5, 1e-9]),
            rng.choice([0.0, rng.random(), rng.random(), 1 - 2.0**-53]),
        )
        for _ in logits
    ]
    table = Choice(*torch.tensor(choices, dtype=torch.float64).T.contiguous())
    expected = choose_among_candidates(logits, table, int(table.top_k.max())).tolist()
    assert NATIVE.choose(logits, choices) == expected


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.zeros(6, 200)
    logits[0, [150, 70, 130]] = 1.0
    logits[1, 199] = 1.0
    logits[2, :] = -math.inf
    logits[2, 77] = -1e30
    logits[3, :] = -0.0
    logits[3, 5] = 0.0
    logits[4, 0] = 3e38
    logits[5, [64, 63]] = 2.0
    assert NATIVE.choose(logits, [GREEDY] * 6) == [70, 199, 77, 0, 0, 63]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("vocab", [1, 8, 100, 4096])
def test_a_row_that_is_not_finite_has_no_token(bad: float, vocab: int) -> None:
    for at in {0, vocab // 3, vocab - 1}:
        logits = rows_of(3, vocab, 1.0, seed=0)
        logits[1, at] = bad
        found = NATIVE.choose(logits, [GREEDY, (1.0, 0.0, 1, 0.9, 0.5), GREEDY])
        assert [token_id == -1 for token_id in found] == [False, True, False]
    nothing = torch.full((1, vocab), -math.inf)
    assert NATIVE.choose(nothing, [GREEDY]) == [-1]


def test_columns_behind_the_vocabulary_do_not_count() -> None:
    logits = torch.zeros(3, 100)
    logits[:, 90:] = math.nan
    logits[:, 41] = 1.0
    assert NATIVE.choose(logits[:, :90], [GREEDY] * 3) == [41] * 3


def test_fewer_tokens_than_top_k() -> None:
    logits = torch.full((2, 300), -math.inf)
    logits[:, [7, 250]] = 1.0
    found = NATIVE.choose(logits, [(1.0, 0.0, 40, 1.0, 0.0), (1.0, 0.0, 40, 1.0, 0.99)])
    assert found == [7, 250]


def test_no_rows() -> None:
    assert NATIVE.choose(torch.empty(0, 10), []) == []
