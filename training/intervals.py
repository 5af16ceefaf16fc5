"""The statistics of the quiz: Wilson's interval and McNemar's paired test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054


def wilson(right: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """95 % interval of a share; (0, 1) for nothing asked."""
    if not total:
        return 0.0, 1.0
    share = right / total
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    middle = share + z * z / (2 * total)
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True)
class Paired:
    """Two runs over the same items; `p` is McNemar's exact test with the mid-p correction.

    `difference` is second minus first; `low` and `high` its 95 % Wald interval.
    """

    total: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Raises ValueError for runs of different length."""
    pairs = list(zip(first, second, strict=True))
    total = len(pairs)
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    difference = (won - lost) / total if total else 0.0
    variance = ((won + lost) - (won - lost) ** 2 / total) / total**2 if total else 0.0
    spread = Z_95 * math.sqrt(max(variance, 0.0))
    return Paired(
        total, lost, won, difference, difference - spread, difference + spread, mcnemar(lost, won)
    )


def mcnemar(lost: int, won: int) -> float:
    """Two-sided mid-p of a fair coin giving a split at least as uneven."""
    total = lost + won
    if not total:
        return 1.0
    least = min(lost, won)
    weights = [math.comb(total, k) for k in range(least + 1)]
    tail = (sum(weights) - weights[-1] / 2) / 2**total
    return min(1.0, 2 * tail)
