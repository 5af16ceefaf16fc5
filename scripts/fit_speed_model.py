"""Fits src/m2serve/plan/speed_constants.toml to measured rows, or scores it on others.

    python scripts/fit_speed_model.py                    fit on tests/data/speed and write
    python scripts/fit_speed_model.py --score FILE.csv   errors of the shipped constants on a file
    python scripts/fit_speed_model.py --hold-out SEED    fit without a fifth of the configurations
                                                         and score on it; nothing is written

Files are in one of the two layouts of m2serve.plan.measured_rows; Ascend's published figures are in
a third one, m2serve.plan.speed_ascend, and add their own constants to those of the GPUs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2serve.plan.measured_rows import Measured, read_rows
from m2serve.plan.speed_ascend import figure_errors, left_out_errors, read_figures, with_ascend
from m2serve.plan.speed_constants import CONSTANTS_PATH, dump_constants, load_constants
from m2serve.plan.speed_fit import (
    LeftOut,
    SpeedConstants,
    errors,
    fit_all,
    leave_fifths_out,
    leave_out,
    with_spreads,
)

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "speed"
ASCEND = DATA / "ascend" / "published.csv"
HELD_OUT = 0.2
NUM_SEEDS = 4


def fit() -> None:
    rows = _all_rows()
    by_configuration = leave_out(rows, lambda row: row.configuration)
    by_accelerator = leave_out(rows, lambda row: row.point.accelerator)
    fifths = leave_fifths_out(rows, NUM_SEEDS)
    constants = with_spreads(fit_all(rows), fifths, by_accelerator)
    figures = read_figures(ASCEND)
    constants = with_ascend(constants, figures)
    CONSTANTS_PATH.write_text(dump_constants(constants), encoding="utf-8")
    print("each configuration left out in turn: mean absolute error (bias)")
    for result in by_configuration:
        print(f"  {result.group:60} {_shown(result.tpot_errors)}  {_shown(result.ttft_errors)}")
    left_out = (
        ("configuration", by_configuration),
        ("a fifth of them", fifths),
        ("accelerator", by_accelerator),
    )
    for name, results in left_out:
        tpot, ttft = _together(results)
        print(f"all rows, {name} left out: TPOT {_shown(tpot)}, TTFT {_shown(ttft)}")
    print(f"in sample: TPOT {_shown(errors(constants, rows)[0])}, {len(rows)} rows")
    inside = figure_errors(constants.tpot, constants, figures)
    outside = left_out_errors(constants, figures)
    print(
        f"Ascend, {len(figures)} figures: in sample {_shown(inside)}, each run left out "
        f"{_shown(outside)}, median {np.median(np.abs(outside)):.1%}"
    )


def hold_out(seed: int) -> None:
    rows = _all_rows()
    names = sorted({row.configuration for row in rows})
    kept_back = set(random.Random(seed).sample(names, round(HELD_OUT * len(names))))
    known = [row for row in rows if row.configuration not in kept_back]
    unseen = [row for row in rows if row.configuration in kept_back]
    shipped = load_constants()
    print(f"{len(kept_back)} of {len(names)} configurations held out, {len(unseen)} rows")
    _report(fit_all(known), shipped, unseen)


def score(path: Path) -> None:
    constants = load_constants()
    _report(constants, constants, read_rows(path))


def _all_rows() -> list[Measured]:
    return [row for path in sorted(DATA.glob("*.csv")) for row in read_rows(path)]


def _report(constants: SpeedConstants, shipped: SpeedConstants, rows: Sequence[Measured]) -> None:
    """Errors by `constants`; the intervals are the shipped ones."""
    tpot, ttft = errors(constants, rows)
    for name, found, spread in (
        ("TPOT", tpot, shipped.tpot_spread[0]),
        ("TTFT", ttft, shipped.ttft_spread[0]),
    ):
        inside = np.mean(np.abs(np.log1p(found)) <= np.log1p(spread)) if len(found) else 0.0
        print(f"{name}: {_shown(found)} of {len(found)} rows; {inside:.0%} inside the interval")


def _together(results: list[LeftOut]) -> tuple[np.ndarray, np.ndarray]:
    tpot = np.concatenate([result.tpot_errors for result in results])
    return tpot, np.concatenate([result.ttft_errors for result in results])


def _shown(found: np.ndarray) -> str:
    if not len(found):
        return "  none       "
    return f"{np.mean(np.abs(found)):6.1%} ({np.mean(found):+6.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit or score the speed model of m2 plan.")
    parser.add_argument("--score", type=Path, metavar="FILE", help="score the shipped constants")
    parser.add_argument(
        "--hold-out", type=int, metavar="SEED", help="score on configurations left out"
    )
    options = parser.parse_args()
    if options.score:
        score(options.score)
    elif options.hold_out is not None:
        hold_out(options.hold_out)
    else:
        fit()


if __name__ == "__main__":
    main()
