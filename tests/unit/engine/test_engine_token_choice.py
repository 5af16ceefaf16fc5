"""The order of equal logits, and random numbers at the edges."""

from __future__ import annotations

import random

import pytest
import torch

from m2serve.engine.token_choice import (
    Choice,
    choose_among_candidates,
    choose_from_all,
    choose_from_nucleus,
    top_candidates,
)


def _choice(num_rows: int, vocab: int, **settings: float) -> Choice:
    values = {"temperature": 1.0, "min_p": 0.0, "top_k": vocab, "top_p": 1.0, "uniform": 0.5}
    values |= settings
    return Choice(
        **{name: torch.full((num_rows,), float(v)).double() for name, v in values.items()}
    )


@pytest.mark.parametrize("vocab", [5, 300, 4000])
@pytest.mark.parametrize("num_values", [1, 3, 50])
def test_candidates_stand_in_one_order_whatever_the_width(vocab: int, num_values: int) -> None:
    rng = random.Random(vocab * num_values)
    rows = [[float(rng.randrange(num_values)) for _ in range(vocab)] for _ in range(12)]
    top_k = [rng.randrange(1, min(vocab, 60) + 1) for _ in rows]
    for width in (max(top_k), min(vocab, 100), vocab):
        values, ids = top_candidates(torch.tensor(rows), torch.tensor(top_k), width)
        assert values.shape == ids.shape == (len(rows), width)
        for row, k in enumerate(top_k):
            order = sorted(range(vocab), key=lambda i: (-rows[row][i], i))[:k]
            assert ids[row, :k].tolist() == order
            assert values[row, :k].tolist() == [rows[row][i] for i in order]


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 3), (1.0, 9)])
def test_the_edges_of_the_random_number_stay_inside_the_kept_tokens(uniform, expected) -> None:
    """1.0 does not occur, but a product with it may round to the whole mass."""
    logits = torch.full((1, 3000), -200.0)
    logits[0, [3, 5, 9]] = 1.0
    logits[0, 2000] = -torch.inf
    settings = {"uniform": uniform, "min_p": 0.1}
    assert choose_from_all(logits, _choice(1, 3000, **settings)).tolist() == [expected]
    few = _choice(1, 3000, top_k=40, **settings)
    assert choose_among_candidates(logits, few, 40).tolist() == [expected]
    nucleus = _choice(1, 3000, top_p=0.99, **settings)
    assert choose_from_nucleus(logits, nucleus).tolist() == [expected]


def test_a_nucleus_within_the_candidates_equals_the_sorted_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5000, generator=generator) * 4
    choice = Choice(
        temperature=torch.full((200,), 0.9).double(),
        min_p=torch.zeros(200).double(),
        top_k=torch.full((200,), 5000).double(),
        top_p=torch.linspace(0.05, 0.999, 200).double(),
        uniform=torch.rand(200, generator=generator).double(),
    )
    expected = choose_among_candidates(logits, choice, 5000)
    assert choose_from_nucleus(logits, choice).tolist() == expected.tolist()
