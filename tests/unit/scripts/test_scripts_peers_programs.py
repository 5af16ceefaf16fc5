"""Programs that are measured: what they print, why they fail, what is missing before it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny import build_tiny

from scripts.peers.compare import check
from scripts.peers.figures import LOAD, batched_bench, result_line
from scripts.peers.processes import Failed, Program, Worker, reason
from scripts.peers.rounds import Case
from scripts.peers.sections import load
from scripts.peers.setup import Setup

ROW = (
    "|   128 |     64 |    8 |   1536 |    1.0 |   1024.00 |    4.0 |   128.00 |   5.0 |   307.20 |"
)


def python(code: str, tmp_path: Path, **options: object) -> Program:
    argv = (sys.executable, "-c", code)
    return Program("one", argv, batched_bench, folder=tmp_path / "runs", **options)


def setup(folder: Path) -> Setup:
    return Setup(
        *(folder / "m2", Path(sys.executable), folder / "llama", folder / "ik"),
        *(folder / "python", folder, folder / "logs"),
    )


def test_a_table_on_stderr_is_read_where_one_may_stand(tmp_path: Path) -> None:
    code = f"import sys; print({ROW!r}, file=sys.stderr); open('llama.log', 'w')"
    assert python(code, tmp_path, stderr_too=True).measure()["decode_tokens_per_s"] == 128
    assert (tmp_path / "runs" / "llama.log").exists()
    with pytest.raises(Failed, match="unreadable"):
        python(code, tmp_path).measure()


def test_bytes_that_are_no_text_end_nothing(tmp_path: Path) -> None:
    code = f"import os; os.write(1, b'\\xff\\n{ROW}')"
    assert python(code, tmp_path).measure()["decode_tokens_per_s"] == 128


def test_the_assertion_is_the_reason_not_the_backtrace_behind_it() -> None:
    backtrace = "#1 0x00007f in ?? ()\n" * 50
    assert reason(f"loading\na.cpp:7: GGML_ASSERT(S > 0) failed\n{backtrace}") == (
        "a.cpp:7: GGML_ASSERT(S > 0) failed"
    )
    assert reason("no such file\n") == "no such file"


def worker(code: str, tmp_path: Path, timeout_s: float) -> Worker:
    return Worker("w", (sys.executable, "-c", code), {}, tmp_path / "w.log", timeout_s)


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    hanging = worker("import time; time.sleep(600)", tmp_path, 0.5)
    with pytest.raises(Failed, match=r"more than 0\.5 s"):
        hanging.open()
    hanging.close()


def test_a_worker_that_is_not_there_has_failed(tmp_path: Path) -> None:
    absent = Worker("w", (str(tmp_path / "absent"),), {}, tmp_path / "w.log")
    with pytest.raises(Failed, match="cannot be started"):
        absent.open()


def test_what_is_missing_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    found = setup(tmp_path)
    bench = found.llama_bench("llama.cpp q4_0", found.llama_bin, "mid-q4_0.gguf")
    with pytest.raises(SystemExit, match=r"llama-bench \(of llama.cpp q4_0\).*mid-q4_0.gguf"):
        check([Case("decode", "4bit", (bench,), ())], found)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "llama-bench").touch()
    (tmp_path / "mid-q4_0.gguf").touch()
    check([Case("decode", "4bit", (bench,), ())], found)


def test_loading_is_timed(tmp_path: Path) -> None:
    build_tiny(tmp_path / "mid", num_hidden_layers=1)
    (case,) = load(setup(tmp_path))
    (contender,) = case.contenders
    assert isinstance(contender, Program)
    assert contender.read is result_line
    figures = contender.measure()
    assert figures[LOAD] > 0
    assert figures["weight_gb"] > 0
