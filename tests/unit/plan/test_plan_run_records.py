"""Files of measured runs as they are read, and what is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_records import RECORD

from m2serve.errors import UsageError
from m2serve.plan.configuration import describe_replicas
from m2serve.plan.run_records import parse_cut, read_runs
from m2serve.records import Parallelism, to_json

BENCH = {
    "model": "/models/m2",
    "shape": None,
    "batch": 2,
    "prompt": 512,
    "output": 16,
    "context": 512,
    "machine": "NVIDIA H200",
    "prefill_tokens_per_s": {"median": 1024.0, "minimum": 1000.0, "maximum": 1100.0},
    "decode_tokens_per_s": {"median": 20.0, "minimum": 19.0, "maximum": 21.0},
    "decode_step_s": 0.1,
}


def written(folder: Path, held: object, name: str = "run.json") -> Path:
    path = folder / name
    path.write_text(held if isinstance(held, str) else json.dumps(held))
    return path


def test_a_record_comes_back(tmp_path: Path) -> None:
    [run] = read_runs(written(tmp_path, to_json(RECORD)))
    assert run.record == RECORD
    assert (run.date, run.file, run.num_replicas) == ("2026-11-20", "run.json", 1)
    assert run.cut == Parallelism(tensor=4)
    assert run.hardware is not None
    assert len(run.hardware.devices) == 4


def test_a_folder_is_read_whole_and_may_hold_other_files(tmp_path: Path) -> None:
    written(tmp_path, [json.loads(to_json(RECORD))] * 2, "two.json")
    written(tmp_path, to_json(RECORD), "one.json")
    written(tmp_path, {"some": "thing"}, "other.json")
    assert [run.file for run in read_runs(tmp_path)] == ["one.json", "two.json", "two.json"]


def test_the_engine_bench_is_a_run_of_our_engine(tmp_path: Path) -> None:
    [run] = read_runs(written(tmp_path, BENCH))
    record = run.record
    assert (record.engine, record.concurrency, record.input_len) == ("own", 2, 1024)
    assert (record.ttft_ms, record.tpot_ms) == (1000.0, 100.0)
    assert record.output_tokens_per_s == pytest.approx(2 * 16 / 2.5)
    assert (run.cut, run.prefix_hit) == (Parallelism(), 0.5)
    assert run.hardware is not None
    assert run.hardware.groups[0].accelerator.name == "h200"


def test_random_weights_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no runs"):
        read_runs(written(tmp_path, {**BENCH, "model": None, "shape": "mid"}))


@pytest.mark.parametrize(
    ("engine", "command", "cut"),
    [
        ("vllm", "vllm serve m -tp 4 --enable-expert-parallel", Parallelism(4, 1, 1, True)),
        ("vllm", "vllm serve m --tensor-parallel-size=8 -dp 2", Parallelism(8, 1, 2)),
        ("sglang", "sglang --tp-size 8 --dp-size 2 --ep-size 8", Parallelism(4, 1, 2, True)),
        ("vllm", "vllm bench serve", None),
        ("vllm", "a 'quote that never ends", None),
    ],
)
def test_the_cut_is_read_from_the_command(
    tmp_path: Path, engine: str, command: str, cut: Parallelism | None
) -> None:
    held = {**json.loads(to_json(RECORD)), "extra": [], "engine": engine, "command": command}
    [run] = read_runs(written(tmp_path, held))
    assert run.cut == cut


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tpot_ms": "fast"}, "tpot_ms is 'fast'"),
        ({"tpot_ms": -1}, "tpot_ms is '-1'"),
        ({"concurrency": True}, "concurrency is 'True'"),
        ({"model": None}, "model is 'None'"),
        ({"extra": [["date"]]}, "two texts"),
        ({"extra": "x"}, "extra is not a list"),
        ({"extra": [["date", "yesterday"]]}, "Invalid isoformat"),
        ({"extra": [["prefix_hit", "2"]]}, "prefix_hit is 2"),
        ({"extra": [["parallelism", "TP0"]]}, "size of 0"),
        ({"extra": [["parallelism", "eight"]]}, "is not like TP4"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    path = written(tmp_path, {**json.loads(to_json(RECORD)), **change})
    with pytest.raises(UsageError, match=sentence):
        read_runs(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "12", '{"a": 1}', "[]"])
def test_what_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        read_runs(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json"):
        read_runs(tmp_path / "none.json")


def test_unequal_stages_are_read() -> None:
    cut = Parallelism(pipeline=3, pipeline_layers=(40, 11, 11))
    assert parse_cut(describe_replicas(1, cut)) == (1, cut)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Parallelism,
        tensor=st.integers(1, 64),
        pipeline=st.integers(1, 8),
        data=st.integers(1, 64),
        expert_parallel=st.booleans(),
        decode_context=st.integers(1, 4),
        prefill_context=st.integers(1, 4),
    ),
    st.integers(1, 16),
)
def test_cuts_are_read_as_plans_write_them(cut: Parallelism, replicas: int) -> None:
    assert parse_cut(describe_replicas(replicas, cut)) == (replicas, cut)
