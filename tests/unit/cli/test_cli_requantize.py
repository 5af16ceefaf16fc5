"""Formats of attention and head as typed, and what the start-up line says of them."""

import json
from pathlib import Path

import pytest
from tiny import build_tiny
from typer.testing import CliRunner

from m2serve.cli import engines
from m2serve.cli import serve as module
from m2serve.cli.main import app
from m2serve.engine.config import EngineConfig
from m2serve.engine.request import EngineInfo
from m2serve.errors import CheckpointError, UsageError
from m2serve.server.config import ServerConfig

runner = CliRunner()
ONE_RUN = ["--prompt", "16", "--output", "3", "--repeat", "1", "--device", "cpu", "--json"]
INFO = EngineInfo(
    model="m",
    device="cpu",
    dtype="bfloat16",
    max_model_len=64,
    vocab_size=100,
    used_vocab_size=100,
    max_num_seqs=1,
    max_num_batched_tokens=64,
    num_kv_blocks=8,
    kv_block_size=16,
    enable_prefix_caching=True,
    load_time_s=1.0,
    weight_bytes=3 * 2**30,
    weight_bytes_saved=2**29,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "tiny"
    build_tiny(path, num_hidden_layers=1, num_local_experts=4)
    return path


def measured(*arguments: str) -> dict[str, object]:
    result = runner.invoke(app, ["bench", "engine", *arguments, *ONE_RUN])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refused(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert isinstance(result.exception, UsageError | CheckpointError), result.output
    return str(result.exception)


def test_bench_of_a_checkpoint(folder: Path) -> None:
    plain = measured(str(folder), "--dtype", "bfloat16")
    small = measured(str(folder), "--dtype", "bfloat16", "--attention-format", "fp8")
    assert plain["model"] == str(folder)
    assert (plain["shape"], plain["format"], plain["layers"]) == (None, None, 1)
    assert small["attention_format"] == "fp8"
    assert small["weight_bytes"] < plain["weight_bytes"]  # type: ignore[operator]
    assert small["decode_bytes"] < plain["decode_bytes"]  # type: ignore[operator]


def test_bench_of_random_weights() -> None:
    result = measured("--shape", "miniature", "--format", "nvfp4", "--layers", "1")
    assert (result["model"], result["shape"], result["layers"]) == (None, "miniature", 1)
    assert result["decode_tokens_per_s"].keys() == {"median", "minimum", "maximum"}  # type: ignore[attr-defined]


def test_bench_prints_a_table() -> None:
    result = runner.invoke(
        app, ["bench", "engine", "--shape", "miniature", "--layers", "1", *ONE_RUN[:-1]]
    )
    for part in ("prefill", "decode", "bytes a token", "GB/s", "share", "peak memory", "experts"):
        assert part in result.output


def test_bench_refuses_what_means_nothing(folder: Path) -> None:
    for option, value in (("--shape", "mid"), ("--layers", "1"), ("--format", "fp8")):
        assert "not MODEL's" in refused("bench", "engine", str(folder), option, value)
    said = refused("bench", "engine", str(folder), "--head-format", "nvfp4", *ONE_RUN)
    assert said == "--head-format is 'nvfp4'; one of bf16, fp8, int8"
    assert "--context is 5" in refused("bench", "engine", "--context", "5", "--layers", "1")


def test_serve_hands_the_formats_to_the_own_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineConfig] = []

    class StopHere(Exception):
        pass

    def make_engine(choice: object, config: EngineConfig, *rest: object) -> None:
        seen.append(config)
        raise StopHere

    monkeypatch.setattr(engines, "make_engine", make_engine)
    for options in ([], ["--attention-format", "fp8", "--head-format", "int8"]):
        assert isinstance(runner.invoke(app, ["serve", str(folder), *options]).exception, StopHere)
    formats = [(config.attention_format, config.head_format) for config in seen]
    assert formats == [("", ""), ("fp8", "int8")]


@pytest.mark.parametrize("option", ["--attention-format", "--head-format"])
def test_other_engines_have_no_such_option(folder: Path, option: str) -> None:
    said = refused("serve", str(folder), "--engine", "vllm", option, "fp8")
    assert said == f"{option} means nothing with --engine vllm"


def test_the_start_up_line_says_what_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    module._announce(ServerConfig(("m",)), INFO)
    assert "weights 3.00 GiB (0.50 less by requantising)" in capsys.readouterr().out.split("\n")[0]
