"""`m2 plan` as typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m2serve.cli.main import app
from m2serve.devices import processor_hardware
from m2serve.environment import this_machine
from m2serve.errors import UsageError
from m2serve.spec.hardware import parse_hardware

runner = CliRunner()


def run(*arguments: str) -> str:
    result = runner.invoke(app, ["plan", *arguments], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_text_says_what_why_and_what_to_watch() -> None:
    output = run("MiniMaxAI/MiniMax-M2.5", "--hardware", "8xmax-q", "--engine", "vllm")
    for part in (
        "vllm 0.20.2",
        "--tensor-parallel-size 8",
        "NCCL_P2P_LEVEL=PHB",
        "26.95",
        "watch for:",
        "known issues:",
        "unlike published deployments:",
        "runners-up:",
        "dropped:",
    ):
        assert part in output


def test_brackets_of_sources_are_not_markup() -> None:
    output = run("MiniMaxAI/MiniMax-M2.5", "--hardware", "4xb200")
    assert "[the plan's memory model]" in output


def test_json_is_one_object() -> None:
    plan = json.loads(run("MiniMax-M2.5", "--hardware", "2xrtx-pro-6000", "--json"))
    assert plan["hardware"] == "2xrtx-pro-6000"
    assert plan["ranks"][1]["rank"] == 1


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ("shell", "#!/usr/bin/env bash"),
        ("docker", "docker run"),
        ("compose", "services:"),
        ("kubernetes", "kind: Service"),
        ("slurm", "#SBATCH"),
        ("recipe", "min_vllm_version"),
    ],
)
def test_forms_are_printed(form: str, part: str) -> None:
    model = ("MiniMaxAI/MiniMax-M2.5", "--hardware", "4xb200", "--engine", "vllm")
    output = run(*model, "--form", form, "--port", "8123")
    assert part in output
    assert "MiniMaxAI/MiniMax-M2.5" in output
    assert form == "recipe" or "8123" in output


def test_each_node_has_a_file_of_its_own(tmp_path: Path) -> None:
    nodes = ("--nodes", "2", "--node-ip", "10.0.0.1", "--node-ip", "10.0.0.2", "--nic", "eth0")
    model = ("MiniMaxAI/MiniMax-M2.5", "--hardware", "8x910b3", "--engine", "vllm-ascend")
    output = run(*model, *nodes, "--form", "shell", "--output-folder", str(tmp_path / "out"))
    assert len(output.splitlines()) == 2
    texts = [Path(line).read_text() for line in output.splitlines()]
    assert "10.0.0.1" in texts[1]
    assert "--headless" in texts[1]
    assert "--headless" not in texts[0]


def test_options_reach_the_workload() -> None:
    plan = json.loads(
        run(
            *("MiniMaxAI/MiniMax-M2.5", "--hardware", "8x910b3", "--nodes", "2", "--json"),
            *("--context", "100000", "--concurrency", "4", "--input-len", "90000"),
            *("--output-len", "1000", "--prefix-hit", "0.9", "--objective", "throughput"),
            *("--slo-ttft-ms", "5000", "--slo-tpot-ms", "200"),
        )
    )
    assert plan["num_nodes"] == 2
    assert plan["max_model_len"] == 100_000
    assert plan["workload"] == {
        "max_model_len": 100_000,
        "concurrency": 4,
        "input_len": 90_000,
        "output_len": 1000,
        "prefix_hit": 0.9,
        "slo_ttft_ms": 5000.0,
        "slo_tpot_ms": 200.0,
        "objective": "throughput",
    }


def test_unknown_hardware_is_one_sentence() -> None:
    result = runner.invoke(app, ["plan", "MiniMax-M2.5", "--hardware", "4xb2000"])
    assert isinstance(result.exception, UsageError)
    assert "did you mean" in str(result.exception)


@pytest.mark.parametrize("hardware", ["1xrtx-pro-6000+2xrtx-4090", "2xdgx-spark", "1xepyc-9005"])
def test_every_kind_of_machine_prints(hardware: str) -> None:
    assert "settings:" in run("MiniMax-M2.5", "--hardware", hardware)


def test_a_machine_without_accelerators_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = this_machine()
    monkeypatch.setattr("m2serve.devices.local_hardware", lambda: processor_hardware(machine))
    result = runner.invoke(app, ["plan", "MiniMaxAI/MiniMax-M2.5", "--hardware", "local"])
    assert isinstance(result.exception, UsageError)
    assert "bandwidth of this processor is unknown" in str(result.exception)


def test_local_accelerators_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2serve.devices.local_hardware", lambda: parse_hardware("4xb200"))
    plan = json.loads(run("MiniMaxAI/MiniMax-M2.5", "--hardware", "local", "--json"))
    assert plan["hardware"] == "4xb200"


def test_measured_runs_beat_the_forecast_and_are_named(tmp_path: Path) -> None:
    record = {
        **dict.fromkeys(("commit", "command"), ""),
        "machine": "4xb200",
        "model": "MiniMaxAI/MiniMax-M2.5",
        "engine": "vllm",
        "engine_version": "0.20.2",
        "input_len": 2048,
        "output_len": 512,
        "concurrency": 8,
        "ttft_ms": 150.0,
        "tpot_ms": 12.0,
        "output_tokens_per_s": 650.0,
        "extra": [["date", "2026-11-20"], ["parallelism", "TP4"]],
    }
    (tmp_path / "run.json").write_text(json.dumps([record, {**record, "tpot_ms": 12.2}]))
    model = ("MiniMaxAI/MiniMax-M2.5", "--hardware", "4xb200", "--engine", "vllm")
    output = run(*model, "--measured", str(tmp_path))
    assert "measured on 2026-11-20 (2 runs: run.json)" in output
    assert "650 tokens/s" in output
    plan = json.loads(run(*model, "--measured", str(tmp_path / "run.json"), "--json"))
    assert plan["speed"]["tpot_ms"]["is_measured"]
    result = runner.invoke(app, ["plan", *model, "--measured", str(tmp_path / "none.json")])
    assert isinstance(result.exception, UsageError)


def test_replicas_are_said() -> None:
    crowd = ("--concurrency", "512", "--objective", "throughput", "--engine", "vllm")
    output = run("MiniMaxAI/MiniMax-M2.5", "--hardware", "8xh200", *crowd)
    assert "2 of these, independent, behind m2 serve" in output
    assert "each of 2 servers" in output
    plan = json.loads(run("MiniMaxAI/MiniMax-M2.5", "--hardware", "8xh200", *crowd, "--json"))
    assert plan["num_replicas"] == 2
