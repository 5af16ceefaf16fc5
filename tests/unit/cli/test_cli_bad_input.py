"""What nobody should type, and what no server should send: one sentence, no traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_records import RECORD
from typer.testing import CliRunner

from m2serve.cli.chat import Turn, _closing, _show
from m2serve.cli.main import app
from m2serve.client import key_header
from m2serve.errors import M2Error, ResourceError, UsageError
from m2serve.plan.run_records import parse_cut, read_runs
from m2serve.records import to_json
from m2serve.server.run import bind
from m2serve.spec.shape import load_json_object

LONG = "a" * 300


def fails(*words: str) -> str:
    """The one sentence of the command's failure."""
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code != 0
    assert isinstance(result.exception, M2Error | SystemExit), result.exception
    said = f"{result.output}{result.exception if isinstance(result.exception, M2Error) else ''}"
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "--engine", "vllm", "--engine-args", '"a'), "--engine-args"),
        (("serve", "--engine", "vllm", "--engine-command", "'a"), "--engine-command"),
        (("serve", LONG), LONG[:40]),
        (("plan", LONG, "--hardware", "4xb200"), "neither known nor a folder"),
        (("doctor", LONG), "neither a URL nor a log file"),
        (("bench", "engine", "--shape", "m2.5", "--layers", "60000"), "GB are free"),
        (("bench", "engine", "--num-threads", "9999999999"), "4096"),
    ],
)
def test_a_command_is_refused_in_a_sentence(words: tuple[str, ...], said: str) -> None:
    assert said in fails(*words)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    command = ("plan", "MiniMaxAI/MiniMax-M2.5", "--hardware", "4xb200", "--form", "shell")
    assert "cannot be written" in fails(*command, "--output-folder", str(file))
    assert "cannot be written" in fails(*command, "--output-folder", str(file / "below"))


def record(folder: Path, **changes: Any) -> Path:
    file = folder / "run.json"
    file.write_text(json.dumps({**json.loads(to_json(RECORD)), **changes}))
    return file


@pytest.mark.parametrize("extra", [[1], [None], ["ab"], [{"a": 1, "b": 2}], [["a", "b", "c"]]])
def test_extras_of_a_record_are_pairs_of_texts(extra: Any, tmp_path: Path) -> None:
    assert read_runs(record(tmp_path, extra=[["a", "b"]]))
    assert read_runs(record(tmp_path, extra={"a": "b"}))
    with pytest.raises(UsageError, match=r"run\.json: extra holds"):
        read_runs(record(tmp_path, extra=extra))


@pytest.mark.parametrize("number", [10**400, -1, "1", True, None])
def test_numbers_of_a_record_are_numbers(number: Any, tmp_path: Path) -> None:
    assert read_runs(record(tmp_path, tpot_ms=1))
    with pytest.raises(UsageError, match=r"run\.json: tpot_ms is"):
        read_runs(record(tmp_path, tpot_ms=number))


@pytest.mark.parametrize("text", ["TP4DP2", "TP٤", "TP", "x", "TP4 EP EP", "", "TP0"])
def test_a_cut_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="parallelism"):
        parse_cut(text)


def test_a_cut_with_layers() -> None:
    replicas, cut = parse_cut("2 x PP2 (30,32)")
    assert (replicas, cut.pipeline, cut.pipeline_layers) == (2, 2, (30, 32))
    assert parse_cut("TP8 DP2 EP")[1].expert_parallel


def test_a_key_that_no_header_may_hold() -> None:
    assert key_header("abc") == {"Authorization": "Bearer abc"}
    assert key_header(None) == {}
    for key in ("schlüssel", "a\nb"):
        with pytest.raises(UsageError, match="API key"):
            key_header(key)


def test_a_host_that_is_no_name() -> None:
    for host in ("a..b", "x" * 70 + ".example"):
        with pytest.raises(ResourceError, match="cannot be used"):
            bind(host, 0)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(M2Error, match="cannot be read"):
        load_json_object(tmp_path)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"delta": None},
        {"delta": "text"},
        {"delta": {"content": ["a"]}},
        {"delta": {"reasoning": 7}},
        {"delta": {"tool_calls": "x"}},
        {"delta": {"tool_calls": [None, {"function": "f"}, {"function": {"name": 3}}]}},
        {"delta": {"tool_calls": [{"index": [1]}, {"index": "a", "id": 3}]}, "finish_reason": 5},
    ],
)
def test_an_answer_of_another_shape_shows_what_it_can(choice: dict[str, Any]) -> None:
    turn = Turn()
    _show(choice, turn, Console(quiet=True))
    assert turn.content == ""
    assert isinstance(_closing(turn), str)
