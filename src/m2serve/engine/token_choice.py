"""From logits and one uniform number a row to a token: temperature, min_p, top_k, top_p.

The tokens of a row stand in one order: higher logit first, lower id first among equals. Each
filter keeps a prefix of that order, so the most likely tokens are enough whenever top_k is set or
the nucleus lies within them, and a row gives the same token however it was computed. bfloat16
models give equal logits often (two tokens in three rows at rank 40 of a 200k vocabulary), so the
order of equals is not left to the sort.

Letters: R rows, V ids of the used vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

MAX_CANDIDATES = 1024
_BLOCK = 1024


@dataclass(frozen=True)
class Choice:
    """Settings of R rows, float64 [R] each; `top_k` is at most V; `uniform` lies in [0, 1)."""

    temperature: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    uniform: torch.Tensor

    def select(self, rows: torch.Tensor) -> Choice:
        return Choice(
            self.temperature[rows],
            self.min_p[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.uniform[rows],
        )


def top_candidates(
    logits: torch.Tensor, top_k: torch.Tensor, max_top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first K = max_top_k ids of each row's order: values [R, K] and ids int64 [R, K].

    `logits` float32 [R, V]; `top_k` int64 [R], each from 1 to K. Positions from top_k[r] on may
    hold any id.
    """
    width = min(max_top_k + 1, logits.shape[1])
    values, ids = logits.topk(width, dim=1)
    ids, by_id = ids.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, by_value)
    _settle_last_equals(logits, values, ids, top_k)
    return values[:, :max_top_k], ids[:, :max_top_k]


def _settle_last_equals(
    logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, top_k: torch.Tensor
) -> None:
    """Where equals reach past position top_k, topk took any of them: put the lowest ids there."""
    last = values.gather(1, (top_k - 1)[:, None])
    beyond = values.gather(1, top_k[:, None].clamp(max=values.shape[1] - 1))
    has_beyond = top_k < values.shape[1]
    rows = (has_beyond & (last == beyond)[:, 0]).nonzero()[:, 0]
    if not len(rows):
        return
    last = last[rows]
    tied_row, tied_id = (logits[rows] == last).nonzero(as_tuple=True)
    num_tied = torch.bincount(tied_row, minlength=len(rows))
    first_of_row = num_tied.cumsum(0) - num_tied
    num_greater = (values[rows] > last).sum(dim=1)
    position = torch.arange(len(tied_row), device=logits.device) - first_of_row[tied_row]
    position += num_greater[tied_row]
    kept = position < top_k[rows][tied_row]
    ids[rows[tied_row[kept]], position[kept]] = tied_id[kept]


def choose_among_candidates(logits: torch.Tensor, choice: Choice, max_top_k: int) -> torch.Tensor:
    """Rows whose top_k is at most `max_top_k`: int64 [R]."""
    values, ids = top_candidates(logits, choice.top_k.long(), max_top_k)
    weights = _weights(values, choice)
    position = _draw(weights, weights.sum(dim=1), choice)
    return ids.gather(1, position[:, None])[:, 0]


def choose_from_nucleus(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Rows with top_p below 1 and a top_k above MAX_CANDIDATES or none: int64 [R].

    The nucleus of most rows lies within MAX_CANDIDATES; only the others are sorted.
    """
    if logits.shape[1] <= MAX_CANDIDATES:
        return _choose_sorted(logits, choice)
    width = torch.full_like(choice.top_k, MAX_CANDIDATES, dtype=torch.int64)
    values, ids = top_candidates(logits, width, MAX_CANDIDATES)
    weights = _weights(values, choice)
    total = _unsorted_weights(logits, choice).sum(dim=1, dtype=torch.float64)
    position = _draw(weights, total, choice)
    chosen = ids.gather(1, position[:, None])[:, 0]
    # A finite top_k above MAX_CANDIDATES changes the total, so those rows are sorted as well.
    outside = weights.sum(dim=1) < choice.top_p * total
    rows = (outside | (choice.top_k < logits.shape[1])).nonzero()[:, 0]
    if len(rows):
        chosen[rows] = _choose_sorted(logits[rows], choice.select(rows))
    return chosen


def choose_from_all(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Rows with neither top_k nor top_p: inverse CDF in order of ids, without a sort, int64 [R].

    In two levels, blocks of ids and ids of the block: a float64 sum of all V is slow on CPUs, a
    float32 one loses the unlikely tokens.
    """
    weights = _unsorted_weights(logits, choice)
    blocks = F.pad(weights, (0, -logits.shape[1] % _BLOCK)).view(len(logits), -1, _BLOCK)
    mass = blocks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    block = _first_above(mass, choice.uniform * mass[:, -1])
    before = F.pad(mass, (1, 0)).gather(1, block[:, None])[:, 0]
    rows = torch.arange(len(logits), device=logits.device)
    inside = blocks[rows, block].double().cumsum(dim=1)
    return block * _BLOCK + _first_above(inside, choice.uniform * mass[:, -1] - before)


def _choose_sorted(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    values, ids = logits.sort(dim=1, descending=True, stable=True)
    weights = _weights(values, choice)
    position = _draw(weights, weights.sum(dim=1), choice)
    return ids.gather(1, position[:, None])[:, 0]


def _weights(values: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Probabilities relative to the most likely token's, float64 [R, K], 0 past min_p and top_k.

    `values` are in descending order. min_p compares with the most likely token, so it needs no
    normalisation.
    """
    weights = ((values.double() - values[:, :1]) / choice.temperature[:, None]).exp()
    position = torch.arange(values.shape[1], device=values.device)
    kept = (weights >= choice.min_p[:, None]) & (position < choice.top_k[:, None])
    return weights.where(kept, 0.0)


def _unsorted_weights(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """The same in order of ids, float32 [R, V], without top_k."""
    scaled = (logits - logits.amax(dim=1, keepdim=True)) / choice.temperature.float()[:, None]
    weights = scaled.exp_()
    return weights.where(weights >= choice.min_p.float()[:, None], 0.0)


def _draw(weights: torch.Tensor, total: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Positions int64 [R] drawn from sorted `weights` after top_p of `total` [R].

    The nucleus is every token before which less than top_p of the total has been seen.
    """
    before = weights.cumsum(dim=1) - weights
    inside = before < (choice.top_p * total)[:, None]
    mass = weights.where(inside, 0.0).cumsum(dim=1)
    return _first_above(mass, choice.uniform * mass[:, -1])


def _first_above(mass: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """First position of each row whose cumulative mass exceeds the target, int64 [R].

    Rounding may put the target at the very end: then the last position that adds mass.
    """
    position = torch.searchsorted(mass, target[:, None], right=True)
    last = torch.searchsorted(mass, mass[:, -1:].contiguous(), right=False)
    return torch.minimum(position, last)[:, 0]
