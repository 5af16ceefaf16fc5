"""Kill the engine under a real server; everything must come back as it was."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from serving import Serving, serving
from tiny import build_tiny
from waiting import wait_for

MODEL = "m"
PROBE = {"model": MODEL, "prompt": "The sky is", "max_tokens": 16, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Serving]:
    with serving(str(folder), "--served-model-name", MODEL, "--dtype", "float32") as running:
        yield running


def engine_process(server: Serving) -> psutil.Process:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(c for c in children if "m2serve.engine.process" in c.cmdline())


def metric(server: Serving, name: str) -> float:
    text = server.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    assert lines, f"{name} is not in /metrics"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def stream(server: Serving, body: dict, events: list[str]) -> None:
    with httpx2.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        events.extend(line[5:].strip() for line in response.iter_lines() if line[:5] == "data:")


def test_a_killed_engine_gives_an_error_event_and_comes_back_the_same(server: Serving) -> None:
    before = server.post("/v1/completions", PROBE).json()["choices"][0]["text"]
    events: list[str] = []
    body = {**PROBE, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    reader = threading.Thread(target=stream, args=(server, body, events))
    reader.start()
    wait_for(lambda: len(events) > 5)
    engine_process(server).send_signal(signal.SIGKILL)
    wait_for(lambda: server.get("/ready").status_code == 503, 10)
    reader.join(30)
    assert not reader.is_alive()
    errors = [json.loads(e) for e in events if e != "[DONE]" and "error" in json.loads(e)]
    assert len(errors) == 1
    assert errors[0]["error"]["type"] == "server_error"
    wait_for(lambda: server.get("/ready").status_code == 200)
    after = server.post("/v1/completions", PROBE).json()["choices"][0]["text"]
    assert after == before


def test_nothing_is_left_after_aborts_errors_and_completions(server: Serving) -> None:
    before = server.post("/v1/completions", PROBE).json()["choices"][0]["text"]

    def impatient(i: int) -> None:
        body = {**PROBE, "prompt": f"Story {i} " * 20, "max_tokens": 2000, "ignore_eos": True}
        try:
            httpx2.post(f"{server.url}/v1/completions", json=body, timeout=0.05 + 0.05 * i)
        except httpx2.TimeoutException:
            return

    threads = [threading.Thread(target=impatient, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    bad = {**PROBE, "prompt": [10**9]}
    assert server.post("/v1/completions", bad).status_code == 400
    assert server.post("/v1/completions", {**PROBE, "n": 4}).status_code == 200
    for thread in threads:
        thread.join()
    wait_for(lambda: metric(server, "vllm:num_requests_running") == 0)
    wait_for(lambda: metric(server, "vllm:num_requests_waiting") == 0)
    wait_for(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)
    assert server.post("/v1/completions", PROBE).json()["choices"][0]["text"] == before


def test_sigterm_ends_the_server_and_its_engine(server: Serving) -> None:
    engine = engine_process(server)
    server.process.terminate()
    assert server.process.wait(20) == 0
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
