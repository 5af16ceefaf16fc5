"""The speed model on Ascend against the published figures of vLLM-Ascend."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2serve.plan.plan import make_plan
from m2serve.plan.speed_ascend import (
    ACCELERATORS,
    Figure,
    figure_errors,
    left_out_errors,
    read_figures,
)
from m2serve.plan.speed_constants import load_constants
from m2serve.plan.speed_model import Columns, tokens_per_step, tpot_ms
from m2serve.records import Workload

DATA = Path(__file__).parents[2] / "data" / "speed" / "ascend" / "published.csv"
INT8 = "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot"


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return read_figures(DATA)


def test_every_run_gives_what_it_tells(figures: list[Figure]) -> None:
    assert len(figures) == load_constants().num_ascend
    guide = [figure for figure in figures if figure.row == 0]
    assert {figure.metric: figure.value for figure in guide} == {
        "ttft_ms": 10_316.56,
        "tpot_ms": 34.28,
        "output_tokens_per_s": 4803.81,
    }
    # 48 sequences on each of four ranks run at once, 25 of 217 users wait.
    assert {(figure.point.users, figure.wanted) for figure in guide} == {(192.0, 217.0)}
    assert {figure.point.accelerator for figure in figures} == set(ACCELERATORS)
    cached = [f for f in figures if f.metric == "ttft_ms" and f.point.input_len > 100_000]
    assert cached == []


def test_runs_left_out_are_predicted(figures: list[Figure]) -> None:
    found = left_out_errors(load_constants(), figures)
    assert np.median(np.abs(found)) < 0.25
    assert np.mean(np.abs(found)) < 0.35
    inside = np.abs(np.log1p(found)) <= np.log1p(load_constants().ascend_spread)
    assert inside.mean() >= 0.7


def test_the_shipped_constants_are_those_of_the_figures(figures: list[Figure]) -> None:
    constants = load_constants()
    found = figure_errors(constants.tpot, constants, figures)
    assert np.mean(np.abs(found)) < 0.3
    assert abs(np.mean(found)) < 0.1


def test_the_guides_deployment_is_forecast() -> None:
    """D14: 34.28 ms a token and 4,804 tokens/s for 217 users on one Atlas 800 A3."""
    workload = Workload(
        max_model_len=40_690,
        concurrency=217,
        input_len=3584,
        output_len=1536,
        objective="throughput",
    )
    speed = make_plan(INT8, "16xascend-910c", workload, engine="vllm-ascend").speed
    assert speed.tpot_ms.value == pytest.approx(34.28, rel=0.25)
    assert speed.tpot_ms.low < 34.28 < speed.tpot_ms.high
    assert speed.output_tokens_per_s.value == pytest.approx(4803.81, rel=0.25)
    assert "published figures of vLLM-Ascend" in speed.tpot_ms.source


def test_drafting_pays_by_what_is_accepted(figures: list[Figure]) -> None:
    point = figures[0].point
    constants = load_constants().tpot
    drafts = Columns([replace(point, draft_tokens=number) for number in (0, 1, 3)])
    gain = tokens_per_step(constants, drafts)
    assert gain[0] == 1
    assert 1 < gain[1] < 2
    assert gain[1] < gain[2] < 4
    times = tpot_ms(constants, drafts)
    assert times[2] < times[0]


def test_where_drafts_were_not_fitted_they_change_nothing(figures: list[Figure]) -> None:
    point = figures[0].point
    constants = {k: v for k, v in load_constants().tpot.items() if k not in ("draft", "accept")}
    assert tokens_per_step(constants, Columns([point]))[0] == 1
