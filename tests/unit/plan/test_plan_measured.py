"""Measured beats modelled: which runs count for a plan, and how."""

from dataclasses import replace
from pathlib import Path

import pytest
from run_records import RECORD

from m2serve.plan.plan import make_plan
from m2serve.plan.run_records import Run, read_runs
from m2serve.records import Plan, RunRecord, Workload, to_json

FP8 = "MiniMaxAI/MiniMax-M2.5"


@pytest.fixture
def runs(tmp_path: Path):
    """Turns records into runs, by way of files."""

    def read(*records: RunRecord) -> tuple[Run, ...]:
        for number, record in enumerate(records):
            (tmp_path / f"run{number}.json").write_text(to_json(record))
        return read_runs(tmp_path)

    return read


def plan_with(runs: tuple[Run, ...], hardware: str = "4xb200", **load: int) -> Plan:
    return make_plan(FP8, hardware, Workload(**load), engine="vllm", runs=runs)


def test_a_run_of_the_same_thing_replaces_the_forecast(runs) -> None:
    speed = plan_with(runs(RECORD)).speed
    assert speed.tpot_ms.value == pytest.approx(12.0)
    assert speed.ttft_ms.value == pytest.approx(150.0)
    assert speed.output_tokens_per_s.value == pytest.approx(650.0)
    assert speed.tpot_ms.is_measured
    assert speed.tpot_ms.source == "measured on 2026-11-20 (1 run: run0.json at 0123456789ab)"
    assert speed.tpot_ms.low == pytest.approx(12.0 / 1.05)


def test_of_several_runs_the_median_counts_and_the_interval_holds_all(runs) -> None:
    times = (11.0, 12.0, 15.0)
    speed = plan_with(runs(*(replace(RECORD, tpot_ms=ms) for ms in times))).speed
    assert speed.tpot_ms.value == pytest.approx(12.0)
    assert speed.tpot_ms.low == pytest.approx(11.0)
    assert speed.tpot_ms.high == pytest.approx(15.0)
    assert "(3 runs: run0.json at 0123456789ab, run1.json at 0123456789ab and 1 more)" in (
        speed.tpot_ms.source
    )


def test_within_the_class_the_model_bridges_the_rest(runs) -> None:
    at_8 = plan_with(runs(RECORD)).speed.tpot_ms
    at_10 = plan_with(runs(RECORD), concurrency=10).speed.tpot_ms
    assert at_10.is_measured
    modelled = [plan_with((), concurrency=users).speed.tpot_ms.value for users in (8, 10)]
    assert at_10.value / at_8.value == pytest.approx(modelled[1] / modelled[0])


def test_another_load_rescales(runs) -> None:
    found = runs(RECORD)
    ratio = 12.0 / plan_with(()).speed.tpot_ms.value
    modelled = plan_with((), concurrency=32).speed.tpot_ms
    rescaled = plan_with(found, concurrency=32).speed.tpot_ms
    assert not rescaled.is_measured
    assert rescaled.value == pytest.approx(modelled.value * ratio)
    assert f"forecast times {ratio:.2f}" in rescaled.source
    assert "at 8 users, 2,048 + 512 tokens, TP4 on 2026-11-20 (1 run" in rescaled.source


def test_another_cut_rescales_so_that_no_cut_wins_by_not_being_measured(runs) -> None:
    slow = replace(RECORD, tpot_ms=30.0, ttft_ms=400.0, output_tokens_per_s=250.0)
    plan = plan_with(runs(slow))
    assert plan.parallelism.tensor == 4
    assert not plan.parallelism.expert_parallel
    assert plan.speed.tpot_ms.value == pytest.approx(30.0)


def test_far_away_is_no_evidence(runs) -> None:
    assert plan_with(runs(RECORD), concurrency=128).speed == plan_with((), concurrency=128).speed


@pytest.mark.parametrize(
    "change",
    [
        {"model": "MiniMaxAI/MiniMax-M2.1"},
        {"model": "MiniMax-M2.5"},  # a served name tells no quantization
        {"machine": "4xh200"},
        {"machine": "my desk"},
        {"machine": "8xb200"},  # TP4 does not use it
        {"engine": "sglang"},
        {"extra": ()},  # the cut of four cards is not told
    ],
)
def test_other_runs_do_not_count_and_the_plan_says_so(runs, change: dict) -> None:
    plan = plan_with(runs(replace(RECORD, **change)))
    assert plan.speed == plan_with(()).speed
    assert any("None of the 1 measured runs" in text for text in plan.warnings)


def test_another_release_is_named(runs) -> None:
    source = plan_with(runs(replace(RECORD, engine_version="0.19.0"))).speed.tpot_ms.source
    assert "vllm 0.19.0" in source


def test_a_metric_that_was_not_measured_stays_modelled(runs) -> None:
    speed = plan_with(runs(replace(RECORD, ttft_ms=0.0))).speed
    assert speed.ttft_ms == plan_with(()).speed.ttft_ms
    assert speed.tpot_ms.is_measured


def test_replicas_are_measured_as_such(runs) -> None:
    extra = (("date", "2026-11-20"), ("parallelism", "2 x TP4"))
    load = {"concurrency": 512, "input_len": 2048, "output_len": 512}
    record = replace(RECORD, machine="8xh200", extra=extra, output_tokens_per_s=9900.0, **load)
    workload = Workload(**load, objective="throughput")
    plan = make_plan(FP8, "8xh200", workload, engine="vllm", runs=runs(record))
    assert plan.num_replicas == 2
    assert plan.speed.output_tokens_per_s.value == pytest.approx(9900.0)
