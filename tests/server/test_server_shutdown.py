"""Signals: drain first, end at the deadline or at the second signal, leave with exit status 0."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from waiting import wait_for

SCRIPT = Path(__file__).with_name("signalled_server.py")


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return f"http://127.0.0.1:{int(process.stdout.readline())}"


class Streaming:
    """Reads a stream in a thread; `events` grow until `done`."""

    def __init__(self, url: str, max_tokens: int) -> None:
        self.events: list[Any] = []
        self.body = {"prompt": "x", "stream": True, "max_tokens": max_tokens}
        self.url = f"{url}/v1/completions"
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        wait_for(lambda: len(self.events) > 3)

    def read(self) -> None:
        with httpx2.stream("POST", self.url, json=self.body, timeout=30) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))

    def end(self) -> list[Any]:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.events


def test_draining_refuses_the_new_and_ends_the_old_at_the_deadline() -> None:
    with running("1.5") as process:
        url = url_of(process)
        stream = Streaming(url, 3000)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{url}/ready").status_code == 503)
        assert httpx2.get(f"{url}/ready").json()["state"] == "draining"
        assert httpx2.get(f"{url}/health").status_code == 200
        refused = httpx2.post(f"{url}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert "retry-after" in refused.headers
        seen = len(stream.events)
        wait_for(lambda: len(stream.events) > seen + 5)
        events = stream.end()
        assert events[-1]["error"]["code"] == "shutting_down"
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "closed 0\n"


def test_running_answers_are_finished_before_the_end() -> None:
    with running("60") as process:
        stream = Streaming(url_of(process), 150)
        process.send_signal(signal.SIGINT)
        events = stream.end()
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == 0


def test_a_second_signal_ends_at_once() -> None:
    with running("600") as process:
        url = url_of(process)
        stream = Streaming(url, 3000)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{url}/ready").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert stream.end()[-1]["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_status_0(number: signal.Signals) -> None:
    with running("600") as process:
        url_of(process)
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_an_engine_that_cannot_start_ends_the_server_with_its_sentence() -> None:
    with running("600", "fail") as process:
        assert process.wait(60) == 1
        assert process.stdout is not None
        assert process.stdout.read() == "CheckpointError: shard 3 is truncated\n"


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running("1", port) as process:
            assert process.wait(60) == 1
            assert process.stdout is not None
            said = process.stdout.read()
            assert said.startswith("ResourceError")
            assert port in said
