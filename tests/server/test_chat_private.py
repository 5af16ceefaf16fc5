"""`m2 chat` with a checkpoint: a server is started for the conversation and ended with it."""

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tiny import build_tiny


def chat(*arguments: str, lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "m2serve.cli.main", "chat", *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120)


def servers_of(folder: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "m2serve.cli.main" in words and "serve" in words and folder in words:
            found.append(process.pid)
    return found


def test_a_conversation_with_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = str(build_tiny(tmp_path / "tiny", num_hidden_layers=2).folder)
    done = chat(folder, "--max-tokens", "8", lines="Hello\nAgain\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert f"Starting {folder}" in done.stderr
    assert done.stdout.count("cut off") == 2
    assert servers_of(folder) == []


def test_without_a_model_the_miniature_answers() -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("a server of somebody else's would answer")
    done = chat("--temperature", "0", lines="What is the capital of France?\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


@pytest.mark.parametrize("target", ["no-such-model", "./no-such-folder"])
def test_a_server_that_does_not_start_says_why(target: str) -> None:
    done = chat(target, lines="Hello\n")
    assert done.returncode == 1
    assert "The server did not start" in done.stderr
    assert target in done.stderr
    assert "Traceback" not in done.stderr
