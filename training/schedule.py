"""How far the run is, and what that means for the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

WARM_UP = 0.02
HOLD_UNTIL = 0.35


@dataclass(frozen=True)
class Budget:
    """Either a number of steps, which makes the run repeatable to the bit, or minutes.

    A run that goes on from another's weights enters the schedule at `begin`.
    """

    steps: int = 0
    minutes: float = 0.0
    begin: float = 0.0

    def progress(self, step: int, elapsed_s: float) -> float:
        """`begin` at the start, 1 when the budget is spent."""
        spent = step / self.steps if self.steps else elapsed_s / (60 * self.minutes)
        return self.begin + (1.0 - self.begin) * spent


def rate_factor(progress: float) -> float:
    """Of the peak rate: a short warm-up, a plateau, then in a straight line to zero."""
    if progress < WARM_UP:
        return max(progress, WARM_UP / 100) / WARM_UP
    if progress < HOLD_UNTIL:
        return 1.0
    return max(0.0, (1.0 - progress) / (1.0 - HOLD_UNTIL))
