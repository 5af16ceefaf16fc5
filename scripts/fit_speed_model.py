"""Fits src/m2serve/plan/speed_constants.toml to measured rows, or scores it on others.

    python scripts/fit_speed_model.py                    fit on tests/data/speed and write
    python scripts/fit_speed_model.py --score FILE.csv   errors of the shipped constants on a file

Files are in one of the two layouts of m2serve.plan.measured_rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from m2serve.plan.measured_rows import read_rows
from m2serve.plan.speed_constants import CONSTANTS_PATH, dump_constants, load_constants
from m2serve.plan.speed_fit import LeftOut, errors, fit_all, leave_out, with_spreads

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "speed"


def fit() -> None:
    rows = [row for path in sorted(DATA.glob("*.csv")) for row in read_rows(path)]
    by_configuration = leave_out(rows, lambda row: row.configuration)
    by_accelerator = leave_out(rows, lambda row: row.point.accelerator)
    constants = with_spreads(fit_all(rows), by_configuration, by_accelerator)
    CONSTANTS_PATH.write_text(dump_constants(constants), encoding="utf-8")
    print("each configuration left out in turn: mean absolute error (bias)")
    for result in by_configuration:
        print(f"  {result.group:60} {_shown(result.tpot_errors)}  {_shown(result.ttft_errors)}")
    for name, results in (("configuration", by_configuration), ("accelerator", by_accelerator)):
        tpot, ttft = _together(results)
        print(f"all rows, {name} left out: TPOT {_shown(tpot)}, TTFT {_shown(ttft)}")
    print(f"in sample: TPOT {_shown(errors(constants, rows)[0])}, {len(rows)} rows")


def score(path: Path) -> None:
    constants = load_constants()
    tpot, ttft = errors(constants, read_rows(path))
    for name, found, spread in (
        ("TPOT", tpot, constants.tpot_spread[0]),
        ("TTFT", ttft, constants.ttft_spread[0]),
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
    options = parser.parse_args()
    if options.score:
        score(options.score)
    else:
        fit()


if __name__ == "__main__":
    main()
