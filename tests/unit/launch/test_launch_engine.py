"""Commands that are started, die, are started again, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import psutil
import pytest
from waiting import until

from m2serve.engine.request import EngineRequest, SamplingParams
from m2serve.engine.upstream import UpstreamEngine, UpstreamModel
from m2serve.engine.upstream_member import UpstreamTimes
from m2serve.errors import EngineDeadError, ResourceError
from m2serve.launch.engine import LaunchedEngine
from m2serve.launch.local import engine_argv, local_launch
from m2serve.launch.process import EngineProcess

COMMAND = (sys.executable, str(Path(__file__).with_name("engine_command.py")))
MODEL = UpstreamModel("folder", vocab_size=5000, used_vocab_size=5000, max_model_len=2000)
TIMES = UpstreamTimes(poll_s=0.05, health_timeout_s=1.0, probe_timeout_s=5.0)
REQUEST = EngineRequest(
    request_id="r", prompt_token_ids=[1, 2], sampling=SamplingParams(max_tokens=3)
)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def launched(
    folder: Path,
    *extra: str,
    restart: bool = False,
    stop_grace_s: float = 20.0,
    explain: Callable[[str], Sequence[object]] = lambda text: (),
) -> AsyncIterator[tuple[LaunchedEngine, EngineProcess]]:
    port = free_port()
    argv = engine_argv("vllm", "MODEL", port, command=COMMAND, extra=extra)
    launch = local_launch(argv, {"M2_TEST": "1"})
    process = EngineProcess(
        launch.argv, dict(launch.env), folder / "log", stop_grace_s=stop_grace_s
    )
    upstream = UpstreamEngine([f"http://127.0.0.1:{port}"], MODEL, str, times=TIMES)
    engine = LaunchedEngine(
        process, upstream, "vllm", restart=restart, explain=explain, backoff_s=0.05
    )
    try:
        yield engine, process
    finally:
        await engine.close()
        await until(lambda: not alive(folder / "log"))


def pids(log: Path) -> list[int]:
    """Of all the workers, which are grandchildren of the guard."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("worker ")]


def alive(log: Path) -> list[int]:
    return [pid for pid in pids(log) if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def engine_pid() -> int:
    return next(
        p.pid
        for p in psutil.Process().children(recursive=True)
        if "engine_command.py" in " ".join(p.cmdline()) and "launch.process" not in p.cmdline()[2]
    )


def test_a_command_is_started_answers_and_is_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with launched(tmp_path) as (engine, process):
            assert (await asyncio.wait_for(engine.wait_ready(), 30)).max_model_len == 1000
            outputs = [output.token_ids async for output in engine.generate(REQUEST)]
            assert outputs == [[100], [101], [102]]
            assert engine.health().ready
            assert process.poll() is None
            assert alive(tmp_path / "log")
        assert engine.health().state == "closed"

    asyncio.run(test())


def test_progress_is_read_from_the_log(tmp_path: Path) -> None:
    async def test() -> None:
        async with launched(tmp_path, "--slow") as (engine, _):
            await engine.start()
            await until(lambda: engine.health().progress == 0.5)
            health = engine.health()
            assert (health.state, health.ready, health.alive) == ("starting", False, True)
            assert str(tmp_path / "log") in health.detail

    asyncio.run(test())


def test_a_failing_start_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def explain(text: str) -> list[str]:
        assert "the model is too large" in text
        return ["Take a smaller one."]

    async def test() -> None:
        async with launched(tmp_path, "--fail", explain=explain, restart=True) as (engine, _):
            with pytest.raises(ResourceError, match="vllm ended with exit status 3"):
                await asyncio.wait_for(engine.wait_ready(), 30)
            assert engine.health().state == "dead"

    asyncio.run(test())
    assert "the model is too large" in caplog.text
    assert "Take a smaller one." in caplog.text


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    async def test() -> None:
        process = EngineProcess(["/no/such/program"], {}, tmp_path / "log")
        process.start()
        await until(lambda: process.poll() is not None)
        assert process.poll() == 127
        assert "/no/such/program cannot be started" in process.tail()
        await process.stop()

    asyncio.run(test())


def test_a_death_is_the_end_unless_it_is_to_be_started_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with launched(tmp_path) as (engine, _):
            await asyncio.wait_for(engine.wait_ready(), 30)
            os.kill(engine_pid(), signal.SIGKILL)
            await until(lambda: engine.health().state == "dead")
            assert not engine.health().alive
            assert "signal 9" in engine.health().detail
            with pytest.raises(EngineDeadError):
                await anext(engine.generate(REQUEST))
            await until(lambda: not alive(tmp_path / "log"))

    asyncio.run(test())


def test_it_is_started_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with launched(tmp_path, restart=True) as (engine, _):
            await asyncio.wait_for(engine.wait_ready(), 30)
            os.kill(engine_pid(), signal.SIGKILL)
            await until(lambda: not engine.health().ready)
            assert engine.health().alive
            await until(lambda: engine.health().ready)
            assert len([output async for output in engine.generate(REQUEST)]) == 3
            assert len(pids(tmp_path / "log")) == 2
            assert len(alive(tmp_path / "log")) == 1

    asyncio.run(test())


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async def test() -> None:
        async with launched(tmp_path, "--stubborn", stop_grace_s=0.5) as (engine, process):
            await asyncio.wait_for(engine.wait_ready(), 30)
            await process.stop()
            assert process.poll() == -signal.SIGKILL

    asyncio.run(test())


START = """
import sys, time
from pathlib import Path
from m2serve.launch.process import EngineProcess
process = EngineProcess(sys.argv[2:], {}, Path(sys.argv[1]))
process.start()
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_process_that_started_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    command = [*COMMAND, "MODEL", "--port", str(free_port())]
    starter = subprocess.Popen([sys.executable, "-c", START, str(log), *command])
    end = time.monotonic() + 30
    while not pids(log) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(log)
    starter.send_signal(number)
    starter.wait(10)
    while alive(log) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(log)
