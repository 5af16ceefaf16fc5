"""Fits the constants of the speed model to measured rows, and judges them on rows left out.

Damped Gauss-Newton on the logarithm of the times; every constant has a prior, so that an effect
with few rows behind it stays near zero, and large errors count less than by their square.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from m2serve.plan.measured_rows import Measured
from m2serve.plan.speed_model import Array, Columns, Constants, tpot_ms, ttft_ms

Priors = Mapping[str, tuple[float, float]]

# (mean, deviation), logarithms of milliseconds or shares where not said otherwise.
_TPOT: Priors = {
    "c0": (math.log(6.0), 0.4),
    "c0_fp4": (-0.3, 0.3),
    "c0_dp": (0.0, 0.1),
    "comm": (math.log(0.3), 0.7),
    "eff": (math.log(0.75), 0.25),
    "eff_fp4": (0.0, 0.25),
    "eff_ep": (0.0, 0.1),
    "alpha": (0.1, 0.15),  # exponent by which more devices lose bandwidth
    "alpha_fp4": (0.1, 0.2),
    "effkv": (math.log(0.6), 0.4),
    "kappa": (math.log(0.8), 0.2),
    "p": (math.log(0.01), 1.0),
    "rho": (math.log(0.3), 0.5),
    "rho_fp4": (-0.3, 0.4),
    "gamma": (0.8, 0.2),  # exponent of the devices' prefill rate
    "P0": (math.log(40), 0.2),
    "ew": (0.0, 1.5),
    "ekv": (0.0, 1.5),
    "et": (0.0, 2.0),
    "eplus": (0.0, 2.0),
}
_TTFT: Priors = {
    "t0": (math.log(25), 0.5),
    "t0_fp4": (-0.1, 0.3),
    "step": (0.0, 0.5),
    "rho": (math.log(0.3), 0.6),
    "rho_fp4": (0.0, 0.4),
    "gamma": (0.6, 0.3),
    "attn": (0.0, 0.5),
    "burst": (math.log(0.05), 0.5),
    "bexp": (math.log(0.9), 0.2),
    "et": (0.0, 1.0),
    "P0": (math.log(40), 0.1),
}
# Deviation of the effects by accelerator and by engine version.
_TPOT_EFFECTS = {"c0": (0.15, 0.1), "eff": (0.15, 0.0), "effkv": (0.2, 0.0), "rho": (0.2, 0.1)}
_TTFT_EFFECTS = {"t0": (0.3, 0.25), "rho": (0.3, 0.25)}
_TPOT_NOISE, _TTFT_NOISE = (0.06, 0.08), (0.12, 0.15)  # (deviation, where errors begin to be large)
_NUDGE = 1e-4
_MAX_MOVE = 0.5
_MAX_DAMPING = 1e6
COVERAGE = 0.8
CONFIDENCE = 0.9
NUM_FOLDS = 5
LEAST_ROWS = 10  # of a batch that says anything about its spread


@dataclass(frozen=True)
class SpeedConstants:
    """`*_spread`: the error, as a share, that four predictions of five stay below: in nine of ten
    batches of unseen configurations of an accelerator that was measured, and (not less) on
    average for one that was not. `ascend_spread`: on average for the `num_ascend` figures that
    plan/speed_ascend.py fits."""

    tpot: Constants
    ttft: Constants
    tpot_spread: tuple[float, float]
    ttft_spread: tuple[float, float]
    ascend_spread: float = 0.0
    num_ascend: int = 0


def fit_all(rows: Sequence[Measured], num_iterations: int = 25) -> SpeedConstants:
    """Both sets of constants; spreads are 0 (`with_spreads` measures them)."""
    tpot = fit(
        _with_effects(_TPOT, _TPOT_EFFECTS, rows),
        Columns([row.point for row in rows]),
        np.log([row.tpot_ms for row in rows]),
        _row_weights(rows) / _TPOT_NOISE[0],
        _TPOT_NOISE[1],
        tpot_ms,
        num_iterations,
    )
    cold = [row for row in rows if row.ttft_ms is not None]
    columns = Columns([row.point for row in cold])
    steps = tpot_ms(tpot, columns)
    ttft = fit(
        _with_effects(_TTFT, _TTFT_EFFECTS, cold),
        columns,
        np.log([float(row.ttft_ms or 0) for row in cold]),
        _row_weights(cold) / _TTFT_NOISE[0],
        _TTFT_NOISE[1],
        lambda constants, points: ttft_ms(constants, points, steps),
        num_iterations,
    )
    return SpeedConstants(tpot, ttft, (0.0, 0.0), (0.0, 0.0))


def errors(constants: SpeedConstants, rows: Sequence[Measured]) -> tuple[Array, Array]:
    """Predicted over measured less one: of every row, and of the rows with a cold first token."""
    columns = Columns([row.point for row in rows])
    steps = tpot_ms(constants.tpot, columns)
    firsts = ttft_ms(constants.ttft, columns, steps)
    is_cold = np.array([row.ttft_ms is not None for row in rows])
    measured = np.array([float(row.ttft_ms or 1) for row in rows])
    tpot_errors = steps / np.array([row.tpot_ms for row in rows]) - 1
    return tpot_errors, (firsts / measured - 1)[is_cold]


@dataclass(frozen=True)
class LeftOut:
    """Errors of predictions by constants fitted without the group's rows."""

    group: str
    tpot_errors: Array
    ttft_errors: Array


def leave_out(
    rows: Sequence[Measured], group_of: Callable[[Measured], str], num_iterations: int = 10
) -> list[LeftOut]:
    results = []
    for group in dict.fromkeys(group_of(row) for row in rows):
        rest = [row for row in rows if group_of(row) != group]
        own = [row for row in rows if group_of(row) == group]
        results.append(LeftOut(group, *errors(fit_all(rest, num_iterations), own)))
    return results


def leave_fifths_out(
    rows: Sequence[Measured], num_seeds: int, num_iterations: int = 10
) -> list[LeftOut]:
    """A random fifth of the configurations left out at a time, `num_seeds` times five of them."""
    names = sorted({row.configuration for row in rows})
    results = []
    for seed in range(num_seeds):
        shuffled = random.Random(seed).sample(names, len(names))
        fold = {name: str(number % NUM_FOLDS) for number, name in enumerate(shuffled)}

        def fold_of(row: Measured, fold: Mapping[str, str] = fold) -> str:
            return fold[row.configuration]

        results += leave_out(rows, fold_of, num_iterations)
    return results


def with_spreads(
    constants: SpeedConstants, batches: Sequence[LeftOut], unknown: Sequence[LeftOut]
) -> SpeedConstants:
    """`batches`: fifths of the configurations left out; `unknown`: whole accelerators left out.

    Rows of one configuration err together, so a quantile over all rows would be too narrow for the
    next few configurations: each batch says what it would have needed.
    """
    pairs = []
    for kind in ("tpot_errors", "ttft_errors"):
        needed = [spread(found) for b in batches if len(found := getattr(b, kind)) >= LEAST_ROWS]
        known = float(np.quantile(needed, CONFIDENCE))
        whole = np.concatenate([getattr(result, kind) for result in unknown])
        pairs.append((known, max(known, spread(whole))))
    return replace(constants, tpot_spread=pairs[0], ttft_spread=pairs[1])


def spread(relative_errors: Array) -> float:
    """Of the ratio, in both directions: from value / (1 + spread) to value * (1 + spread)."""
    return float(np.expm1(np.quantile(np.abs(np.log1p(relative_errors)), COVERAGE)))


def _with_effects(
    priors: Priors, effects: Mapping[str, tuple[float, float]], rows: Sequence[Measured]
) -> Priors:
    accelerators = sorted({row.point.accelerator for row in rows})
    versions = sorted({row.point.version for row in rows})
    added = dict(priors)
    for name, (by_accelerator, by_version) in effects.items():
        added |= {f"{name}@{label}": (0.0, by_accelerator) for label in accelerators}
        if by_version:
            added |= {f"{name}#{label}": (0.0, by_version) for label in versions}
    return added


def _row_weights(rows: Sequence[Measured]) -> Array:
    """A configuration with many rows counts more than one with few, but not in proportion."""
    counts = Counter(row.configuration for row in rows)
    return np.array([counts[row.configuration] ** -0.25 for row in rows])


def fit(
    priors: Priors,
    columns: Columns,
    log_measured: Array,
    weights: Array,
    large: float,
    predict: Callable[[Constants, Columns], Array],
    num_iterations: int,
) -> dict[str, float]:
    """The constants of `priors` under which `predict` comes nearest to what was measured, weighted
    by `weights`; log errors above `large` count less.
    """
    names = list(priors)
    mean = np.array([priors[name][0] for name in names])
    precision = np.array([priors[name][1] for name in names]) ** -2.0

    def residuals(values: Array) -> Array:
        constants = dict(zip(names, values.tolist(), strict=True))
        return np.log(predict(constants, columns)) - log_measured

    values, damping = mean.copy(), 1e-2
    error = residuals(values)
    for _ in range(num_iterations):
        slopes = np.stack(
            [(residuals(values + move) - error) / _NUDGE for move in np.eye(len(names)) * _NUDGE],
            axis=1,
        )
        scale = weights / np.sqrt(np.maximum(1, np.abs(error) / large))
        slopes_w, error_w = slopes * scale[:, None], error * scale
        curvature = slopes_w.T @ slopes_w + np.diag(precision)
        gradient = slopes_w.T @ error_w + (values - mean) * precision
        damped = curvature + damping * np.diag(np.diag(curvature))
        moved = values + np.clip(np.linalg.solve(damped, -gradient), -_MAX_MOVE, _MAX_MOVE)
        moved_error = residuals(moved)
        before = ((error * scale) ** 2).sum() + ((values - mean) ** 2 * precision).sum()
        after = ((moved_error * scale) ** 2).sum() + ((moved - mean) ** 2 * precision).sum()
        if after < before:
            values, error, damping = moved, moved_error, max(damping / 3, 1e-6)
        elif (damping := damping * 5) > _MAX_DAMPING:
            break
    return {name: round(float(value), 5) for name, value in zip(names, values, strict=True)}
