"""Work dealt out to several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def dealt_out(items: Iterable[Item], count: int, cost: Callable[[Item], float]) -> list[list[Item]]:
    """In `count` lots that cost about the same: the dearest first, each to the cheapest lot.

    Some are empty when items are few. Equal items keep their order, so the result is one of the
    arguments alone.
    """
    lots: list[list[Item]] = [[] for _ in range(count)]
    totals = [0.0] * count
    for item in sorted(items, key=cost, reverse=True):
        cheapest = totals.index(min(totals))
        lots[cheapest].append(item)
        totals[cheapest] += cost(item)
    return lots
