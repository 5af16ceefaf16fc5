"""The process boundary, with an engine that needs no model: routing, deaths, restarts, ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_stepped_engine import BROKEN_TOKEN, REFUSED_TOKEN, VOCAB_SIZE

from m2serve.engine.config import EngineConfig
from m2serve.engine.request import EngineOutput, EngineRequest, SamplingParams
from m2serve.engine.supervisor import SupervisedEngine
from m2serve.errors import CheckpointError, EngineDeadError, RequestError

COMMAND = (sys.executable, str(Path(__file__).with_name("fake_stepped_engine.py")))
FOREVER = 10**9


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def supervised(folder: Path, **options: Any) -> SupervisedEngine:
    folder.mkdir()
    config = EngineConfig(model_path=str(folder))
    return SupervisedEngine(config, command=COMMAND, **{"backoff_s": 0.01, **options})


@asynccontextmanager
async def ready(folder: Path, **options: Any) -> AsyncIterator[SupervisedEngine]:
    engine = supervised(folder, **options)
    try:
        await engine.wait_ready()
        yield engine
    finally:
        await engine.close()


def request(name: str, *prompt: int, max_tokens: int = 5) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens)
    return EngineRequest(request_id=name, prompt_token_ids=list(prompt), sampling=sampling)


async def answer(engine: SupervisedEngine, asked: EngineRequest) -> list[int]:
    outputs = [output async for output in engine.generate(asked)]
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    return [token_id for output in outputs for token_id in output.token_ids]


async def exhaust(stream: AsyncIterator[EngineOutput]) -> None:
    async for _ in stream:
        pass


async def until(condition: Callable[[], bool], deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def engine_process() -> psutil.Process:
    [child] = [c for c in psutil.Process().children() if COMMAND[1] in c.cmdline()]
    return child


def num_starts(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_requests_at_once_get_their_own_answers(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok") as engine:
            assert engine.info.model == "start 1"
            health = engine.health()
            assert (health.state, health.ready, health.alive) == ("ready", True, True)
            asked = [request(str(i), 1000 * i, max_tokens=i) for i in range(1, 30)]
            answers = await asyncio.gather(*(answer(engine, one) for one in asked))
            assert answers == [[1000 * i + j + 1 for j in range(i)] for i in range(1, 30)]
            assert engine.stats().step >= 29
            await until(lambda: engine.stats().num_running_reqs == 0)

    run(test)


def test_leaving_the_iterator_early_aborts_in_the_engine(tmp_path: Path) -> None:
    async def cancelled(engine: SupervisedEngine) -> None:
        await answer(engine, request("b", 1, max_tokens=FOREVER))

    async def test() -> None:
        async with ready(tmp_path / "ok") as engine:
            async with aclosing(engine.generate(request("a", 1, max_tokens=FOREVER))) as outputs:
                assert (await anext(outputs)).token_ids == [2]
            task = asyncio.create_task(cancelled(engine))
            await until(lambda: engine.stats().num_running_reqs == 1)
            task.cancel()
            await until(lambda: engine.stats().num_running_reqs == 0)
            assert await answer(engine, request("a", 7, max_tokens=2)) == [8, 9]

    run(test)


def test_bad_requests_fail_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok") as engine:
            with pytest.raises(RequestError, match=f"prompt is {VOCAB_SIZE}"):
                await answer(engine, request("a", VOCAB_SIZE))
            [output] = [o async for o in engine.generate(request("a", REFUSED_TOKEN))]
            assert output.finish_reason == "error"
            assert output.error == "the engine does not like this prompt"
            async with aclosing(engine.generate(request("a", 1, max_tokens=FOREVER))) as outputs:
                await anext(outputs)
                with pytest.raises(RequestError, match="already being served"):
                    await answer(engine, request("a", 1))
                assert (await anext(outputs)).token_ids == [3]

    run(test)


def test_a_killed_engine_fails_its_requests_and_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok", backoff_s=0.2) as engine:
            before = await answer(engine, request("before", 41))
            stream = engine.generate(request("a", 1, max_tokens=FOREVER))
            await anext(stream)
            engine_process().kill()
            with pytest.raises(EngineDeadError, match=r"signal 9.*can be sent again"):
                await exhaust(stream)
            health = engine.health()
            assert (health.state, health.ready) == ("restarting", False)
            assert "signal 9" in health.detail
            with pytest.raises(EngineDeadError, match="not ready"):
                await answer(engine, request("b", 1))
            assert (await engine.wait_ready()).model == "start 2"
            assert engine.health().ready
            assert await answer(engine, request("after", 41)) == before

    run(test)


def test_a_failing_step_ends_the_process_with_its_traceback_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok") as engine:
            bystander = asyncio.create_task(answer(engine, request("b", 1, max_tokens=FOREVER)))
            await until(lambda: engine.stats().num_running_reqs == 1)
            with pytest.raises(EngineDeadError, match="exit status 1") as caught:
                await answer(engine, request("a", BROKEN_TOKEN))
            assert "fake forward" not in str(caught.value)
            with pytest.raises(EngineDeadError):
                await bystander
            assert (await engine.wait_ready()).model == "start 2"

    run(test)
    assert "RuntimeError: the fake forward pass fails" in capfd.readouterr().err


def test_a_stopped_engine_is_not_alive(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok", liveness_timeout_s=2.0) as engine:
            process = engine_process()
            process.suspend()
            await until(lambda: not engine.health().alive)
            process.resume()
            await until(lambda: engine.health().alive)

    run(test)


def test_a_hung_engine_is_killed_and_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok", hang_timeout_s=2.0, stop_grace_s=0.5) as engine:
            running = asyncio.create_task(
                exhaust(engine.generate(request("a", 5, max_tokens=FOREVER)))
            )
            await until(lambda: engine.stats().step > 0)
            engine_process().send_signal(signal.SIGSTOP)
            with pytest.raises(EngineDeadError, match="silent for 2 s and has been killed"):
                await running
            await until(lambda: engine.health().ready)
            assert await answer(engine, request("b", 7))
            assert num_starts(tmp_path / "ok") == 2

    run(test)


def test_an_engine_that_makes_no_step_is_not_alive_while_a_request_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "never-steps", liveness_timeout_s=1.5) as engine:
            await asyncio.sleep(1.6)
            assert engine.health().alive, "nothing to do"
            task = asyncio.create_task(answer(engine, request("a", 1)))
            await until(lambda: not engine.health().alive)
            assert not engine.health().ready, "nobody should send it more"
            task.cancel()

    run(test)


def test_a_step_of_minutes_is_alive_as_long_as_its_layers_are_computed(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "slow-step", liveness_timeout_s=2.5) as engine:
            task = asyncio.create_task(answer(engine, request("a", 1)))
            await asyncio.sleep(4)
            assert engine.health().ready
            task.cancel()

    run(test)


def test_a_first_start_that_fails_is_not_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        engine = supervised(tmp_path / "fails")
        await engine.start()
        with pytest.raises(CheckpointError, match=r"^The tensor model.norm.weight is missing\.$"):
            await engine.wait_ready()
        health = engine.health()
        assert (health.state, health.ready, health.alive) == ("dead", False, False)
        assert health.detail == "The tensor model.norm.weight is missing."
        with pytest.raises(EngineDeadError, match=r"model\.norm\.weight"):
            await answer(engine, request("a", 1))
        await engine.close()

    run(test)
    assert num_starts(tmp_path / "fails") == 1
    assert capfd.readouterr().err == ""


def test_a_first_start_that_crashes_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        engine = supervised(tmp_path / "crashes")
        with pytest.raises(EngineDeadError, match=r"exit status 1 \(the log has the cause\)"):
            await engine.wait_ready()
        await engine.close()

    run(test)
    assert num_starts(tmp_path / "crashes") == 1
    assert "RuntimeError: a bug in the loader" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["fails-later", "crashes-later"])
def test_restarts_that_fail_are_given_up(tmp_path: Path, name: str) -> None:
    async def test() -> None:
        async with ready(tmp_path / name, max_deaths=2) as engine:
            engine_process().kill()
            await until(lambda: engine.health().state == "dead")
            with pytest.raises((EngineDeadError, CheckpointError)):
                await engine.wait_ready()

    run(test)
    assert num_starts(tmp_path / name) == 3


def test_a_command_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        engine = SupervisedEngine(EngineConfig(model_path="x"), command=("/does/not/exist",))
        with pytest.raises(EngineDeadError, match="cannot be started"):
            await engine.wait_ready()
        await engine.close()

    run(test)


def test_close_ends_a_stopped_engine_and_fails_what_runs(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok", stop_grace_s=0.3) as engine:
            process = engine_process()
            task = asyncio.create_task(answer(engine, request("a", 1, max_tokens=FOREVER)))
            await until(lambda: engine.stats().num_running_reqs == 1)
            process.suspend()
            await engine.close()
            assert not process.is_running()
            with pytest.raises(EngineDeadError, match="has been stopped"):
                await task
            assert engine.health().state == "closed"
            with pytest.raises(EngineDeadError, match="has been stopped"):
                await engine.wait_ready()

    run(test)


def test_close_wakes_who_waits_for_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        engine = supervised(tmp_path / "ok")
        waiting = asyncio.create_task(engine.wait_ready())
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(EngineDeadError):
            await waiting
        await until(lambda: not psutil.Process().children())

    run(test)


def test_signals_of_the_terminal_and_of_a_service_do_not_end_the_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready(tmp_path / "ok") as engine:
            process = engine_process()
            assert os.getpgid(process.pid) != os.getpgid(0)
            process.send_signal(signal.SIGINT)
            process.terminate()
            assert await answer(engine, request("a", 1, max_tokens=50)) == list(range(2, 52))

    run(test)


def test_a_parent_that_does_not_read_for_a_while_stops_nothing(tmp_path: Path) -> None:
    """Both directions are full at the same moment: megabytes of prompts, thousands of outputs."""

    async def test() -> None:
        async with ready(tmp_path / "ok") as engine:
            running = [
                asyncio.create_task(answer(engine, request(f"a{i}", 1, max_tokens=300)))
                for i in range(100)
            ]
            await until(lambda: engine.stats().num_running_reqs == 100)
            prompt = [500_000] * 50_000
            more = [
                asyncio.create_task(answer(engine, request(f"b{i}", *prompt, max_tokens=3)))
                for i in range(20)
            ]
            await asyncio.sleep(0)
            time.sleep(0.5)
            assert set(map(tuple, await asyncio.gather(*running))) == {tuple(range(2, 302))}
            assert await asyncio.gather(*more) == [[500_001, 500_002, 500_003]] * 20

    run(test)


PARENT = """
import asyncio, sys
from m2serve.engine.config import EngineConfig
from m2serve.engine.supervisor import SupervisedEngine
async def main():
    engine = SupervisedEngine(EngineConfig(model_path=sys.argv[1]), command=sys.argv[2:])
    await engine.wait_ready()
    print("ready", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "ok").mkdir()
    command = [sys.executable, "-c", PARENT, str(tmp_path / "ok"), *COMMAND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        [child] = psutil.Process(parent.pid).children()
        parent.kill()
    end = time.monotonic() + 20
    # Its new parent may be slow to collect it.
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the engine still runs"
        time.sleep(0.01)


def test_the_parent_side_needs_no_torch() -> None:
    modules = "client, config, frames, process, scripted, supervisor, validation"
    code = f"import sys; from m2serve.engine import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
