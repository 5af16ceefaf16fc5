"""How far the run is, and what that means for the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

WARM_UP = 0.02
HOLD_UNTIL = 0.35


@dataclass(frozen=True)
class Budget:
    """Either a number of steps, which makes the run repeatable to the bit, or minutes."""

    steps: int = 0
    minutes: float = 0.0

    def progress(self, step: int, elapsed_s: float) -> float:
        """0 at the start, 1 when the budget is spent."""
        if self.steps:
            return step / self.steps
        return elapsed_s / (60 * self.minutes)


def rate_factor(progress: float) -> float:
    """Of the peak rate: a short warm-up, a plateau, then in a straight line to zero."""
    if progress < WARM_UP:
        return max(progress, WARM_UP / 100) / WARM_UP
    if progress < HOLD_UNTIL:
        return 1.0
    return max(0.0, (1.0 - progress) / (1.0 - HOLD_UNTIL))
