"""The release of an installed engine, asked of the Python that runs it."""

import os
import sys
from pathlib import Path

import pytest

from m2serve.launch import installed
from m2serve.launch.installed import installed_version, interpreter_of, release_of


def script(folder: Path, name: str, head: str) -> Path:
    path = folder / name
    path.write_text(f"{head}\nimport nothing\n")
    path.chmod(0o755)
    return path


def test_the_interpreter_of_a_script(tmp_path: Path) -> None:
    python = sys.executable
    assert interpreter_of(script(tmp_path, "a", f"#!{python}")) == python
    long = f"#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''"
    assert interpreter_of(script(tmp_path, "b", long)) == python
    assert interpreter_of(script(tmp_path, "c", "#!/bin/sh\nexec docker run x")) is None
    assert interpreter_of(script(tmp_path, "d", "#!/nowhere/bin/python3")) is None
    assert interpreter_of(tmp_path / "missing") is None
    assert interpreter_of(Path("/usr/bin/python3")) == "/usr/bin/python3"


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.20.2\n", "0.20.2"),
        ("0.32.0+cpu", "0.32.0"),
        ("0.20.3.dev12+g1a2b3c", "0.20.3"),
        ("0.1.dev1+g1a2b3c", ""),
        ("0.5.10.post1", "0.5.10.post1"),
        ("0.26.0rc1", "0.26.0rc1"),
        ("", ""),
        ("dev", ""),
        ("Traceback (most recent call last):", ""),
        ("1" * 100, ""),
    ],
)
def test_a_version_is_read_as_its_release(text: str, release: str) -> None:
    assert release_of(text) == release


def test_an_engine_is_asked_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "vllm-0.19.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.19.1+cu129\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    script(tmp_path, "vllm", f"#!{sys.executable}")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert installed_version("vllm") == "0.19.1"
    assert installed_version("vllm", [str(tmp_path / "vllm"), "serve"]) == "0.19.1"
    assert installed_version("vllm", ["docker", "run"]) == ""


def test_a_python_that_hangs_or_fails_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(tmp_path, "vllm", f"#!{sys.executable}")
    monkeypatch.setattr(installed, "_ASK", "raise SystemExit('no')")
    assert installed_version("vllm", [str(program)]) == ""
    monkeypatch.setattr(installed, "_ASK", "import time; time.sleep(9)")
    monkeypatch.setattr(installed, "_TIMEOUT_S", 0.2)
    assert installed_version("vllm", [str(program)]) == ""
