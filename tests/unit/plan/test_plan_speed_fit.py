"""The speed model against the published rows: every configuration predicted without its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2serve.errors import ConfigError, UsageError
from m2serve.plan.measured_rows import Measured, read_rows
from m2serve.plan.speed_constants import dump_constants, load_constants, measured_accelerators
from m2serve.plan.speed_fit import errors, leave_out
from m2serve.plan.speed_model import Columns, tpot_ms, ttft_ms

DATA = Path(__file__).parents[2] / "data" / "speed"
MAX_TPOT_ERROR, MAX_TTFT_ERROR = 0.10, 0.25
MIN_COVERAGE = 0.80


@pytest.fixture(scope="module")
def rows() -> list[Measured]:
    return [row for path in sorted(DATA.glob("*.csv")) for row in read_rows(path)]


def test_configurations_left_out_are_predicted(rows: list[Measured]) -> None:
    results = leave_out(rows, lambda row: row.configuration, num_iterations=6)
    for kind, limit in (("tpot_errors", MAX_TPOT_ERROR), ("ttft_errors", MAX_TTFT_ERROR)):
        found = np.concatenate([getattr(result, kind) for result in results])
        assert np.mean(np.abs(found)) < limit
    assert len(results) > 30
    constants = load_constants()
    tpot = np.concatenate([result.tpot_errors for result in results])
    inside = np.abs(np.log1p(tpot)) <= np.log1p(constants.tpot_spread[0])
    assert inside.mean() >= MIN_COVERAGE


def test_the_shipped_constants_are_those_of_the_rows(rows: list[Measured]) -> None:
    tpot, ttft = errors(load_constants(), rows)
    assert np.mean(np.abs(tpot)) < 0.06
    assert np.mean(np.abs(ttft)) < 0.15
    assert measured_accelerators(load_constants()) == {row.point.accelerator for row in rows}


def test_constants_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "constants.toml"
    path.write_text(dump_constants(load_constants()))
    assert load_constants(path) == load_constants()
    broken = tmp_path / "broken.toml"
    broken.write_text("[tpot]\nc0 = 'much'\n")
    with pytest.raises(ConfigError, match=r"broken\.toml does not hold"):
        load_constants(broken)


@pytest.mark.parametrize(
    ("change", "is_slower"),
    [
        ({"users": 200.0}, True),
        ({"input_len": 30_000.0}, True),
        ({"bandwidth_gb_per_s": 3000.0}, True),
        ({"is_four_bit": True, "expert_bytes": 1.26e11}, False),
        ({"power_limit_w": 200.0}, True),
    ],
)
def test_physics_has_the_right_sign(rows: list[Measured], change: dict, is_slower: bool) -> None:
    point = next(row.point for row in rows if row.point.accelerator == "b200")
    point = replace(point, is_four_bit=False, expert_bytes=2.25e11)
    columns = Columns([point, replace(point, **change)])
    before, after = tpot_ms(load_constants().tpot, columns)
    assert bool(after > before) is is_slower


def test_a_cached_prompt_comes_sooner(rows: list[Measured]) -> None:
    point = replace(rows[0].point, input_len=8192.0, prefix_hit=0.0)
    columns = Columns([point, replace(point, prefix_hit=0.25)])
    constants = load_constants()
    cold, warm = ttft_ms(constants.ttft, columns, tpot_ms(constants.tpot, columns))
    assert warm < cold


def test_an_unknown_accelerator_has_no_effects_of_its_own(rows: list[Measured]) -> None:
    point = replace(rows[0].point, accelerator="abacus", version="")
    other = replace(point, accelerator="slide rule")
    first, second = tpot_ms(load_constants().tpot, Columns([point, other]))
    assert first == second


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"rows\.csv has neither"):
        read_rows(path)
