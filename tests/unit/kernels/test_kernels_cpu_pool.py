"""The pool of threads and the split of rows: pool_check.cpp, compiled and run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import m2serve.kernels

COMPILER = shutil.which("g++")
SOURCES = next(Path(place) / "cpu" for place in m2serve.kernels.__path__)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(not (SOURCES / "pool.cpp").is_file(), reason="installed without sources")
def test_every_chunk_runs_once_and_every_row_is_in_one(tmp_path: Path) -> None:
    assert COMPILER is not None
    program = tmp_path / "pool_check"
    check = Path(__file__).with_name("pool_check.cpp")
    flags = ["-std=c++20", "-O1", "-pthread", f"-I{SOURCES}", "-o", str(program)]
    subprocess.run([COMPILER, *flags, str(check), str(SOURCES / "pool.cpp")], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=200)
    assert (result.returncode, result.stdout) == (0, "ok\n")
