"""The real engine in its process: the same answers as in this one, before and after a death."""

from __future__ import annotations

import asyncio
import queue
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
from tiny import build_tiny

from m2serve.engine import frames
from m2serve.engine.config import EngineConfig
from m2serve.engine.engine import Engine
from m2serve.engine.process import serve
from m2serve.engine.request import EngineOutput, EngineRequest, EngineStats, SamplingParams
from m2serve.engine.supervisor import SupervisedEngine
from m2serve.errors import CheckpointError, EngineDeadError

PROMPTS = [[7 * i + j for j in range(i * i + 1)] for i in range(6)]
SAMPLING = SamplingParams(max_tokens=12, seed=5, top_k=40, top_p=0.95, logprobs=1)


def config_of(folder: Path) -> EngineConfig:
    return EngineConfig(
        model_path=str(folder),
        dtype="float32",
        device="cpu",
        max_model_len=128,
        kv_cache_memory_bytes=2**20,
    )


def request(name: str, prompt: list[int], sampling: SamplingParams = SAMPLING) -> EngineRequest:
    return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)


async def answers(engine: SupervisedEngine, tag: str) -> list[list[int]]:
    async def one(name: str, prompt: list[int]) -> list[int]:
        outputs = [output async for output in engine.generate(request(name, prompt))]
        assert all(len(o.logprobs or []) == len(o.token_ids) for o in outputs)
        return [token_id for output in outputs for token_id in output.token_ids]

    return await asyncio.gather(*(one(f"{tag}{i}", p) for i, p in enumerate(PROMPTS)))


async def leave_early(engine: SupervisedEngine, name: str, num_outputs: int) -> None:
    long = SamplingParams(max_tokens=100, ignore_eos=True)
    async with aclosing(engine.generate(request(name, [1, 2, 3], long))) as outputs:
        for _ in range(num_outputs):
            await anext(outputs)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def engine_process() -> psutil.Process:
    children = psutil.Process().children()
    return next(c for c in children if "m2serve.engine.process" in c.cmdline())


async def assert_idle(engine: SupervisedEngine) -> None:
    await until(lambda: engine.stats().num_running_reqs == engine.stats().num_waiting_reqs == 0)
    stats = engine.stats()
    assert stats.num_referenced_blocks == 0
    assert stats.num_free_blocks + stats.num_cached_blocks == engine.info.num_kv_blocks


async def live(folder: Path, wanted: list[list[int]]) -> None:
    engine = SupervisedEngine(config_of(folder), backoff_s=0.01)
    try:
        info = await engine.wait_ready()
        assert (info.dtype, info.max_model_len, info.vocab_size) == ("float32", 128, 1200)
        assert engine.stats().generation_tokens == 0
        assert await answers(engine, "a") == wanted

        rng = random.Random(0)
        early = [leave_early(engine, f"early{i}", rng.randint(1, 20)) for i in range(10)]
        _, found = await asyncio.gather(asyncio.gather(*early), answers(engine, "b"))
        assert found == wanted
        await assert_idle(engine)

        running = asyncio.create_task(leave_early(engine, "c", 10**6))
        await until(lambda: engine.stats().num_running_reqs == 1)
        engine_process().kill()
        with pytest.raises(EngineDeadError, match="signal 9"):
            await running
        assert not engine.health().ready
        await engine.wait_ready()
        assert engine.health().ready
        assert await answers(engine, "d") == wanted
        await assert_idle(engine)
        process = engine_process()
    finally:
        await engine.close()
    assert not process.is_running()


def test_a_life_with_a_death(tmp_path: Path) -> None:
    build_tiny(tmp_path, hidden_size=48, num_hidden_layers=2, max_position_embeddings=128)
    local = Engine.load(config_of(tmp_path))
    wanted = [local.generate([prompt], SAMPLING)[0].token_ids for prompt in PROMPTS]
    asyncio.run(asyncio.wait_for(live(tmp_path, wanted), 120))


def test_a_checkpoint_that_cannot_be_loaded_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        engine = SupervisedEngine(config_of(tmp_path / "nowhere"))
        with pytest.raises(CheckpointError, match=r"nowhere is not a folder"):
            await engine.wait_ready()
        await engine.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert "Traceback" not in capfd.readouterr().err


class BreakingEngine:
    """Two steps, each with news, then one that fails."""

    def __init__(self) -> None:
        self.num_steps = 0

    def add(self, request: EngineRequest) -> None: ...

    def has_work(self) -> bool:
        return True

    def stats(self) -> EngineStats:
        return EngineStats(step=self.num_steps)

    def step(self) -> list[EngineOutput]:
        if self.num_steps == 2:
            raise RuntimeError("the third step fails")
        self.num_steps += 1
        return [EngineOutput(request_id=str(self.num_steps))]


class SlowConnection:
    """Keeps what is posted to itself until it is flushed."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[frames.ToEngine] = queue.SimpleQueue()
        self.posted: list[str] = []
        self.sent: list[str] = []

    def post(self, outputs: list[EngineOutput], stats: EngineStats) -> None:
        self.posted += [f"{output.request_id} of step {stats.step}" for output in outputs]

    def flush(self) -> None:
        self.sent, self.posted = self.posted, []


def test_what_was_computed_before_a_step_failed_is_sent() -> None:
    connection = SlowConnection()
    with pytest.raises(RuntimeError, match="third step"):
        serve(connection, BreakingEngine())  # type: ignore[arg-type]
    assert connection.sent == ["1 of step 1", "2 of step 2"]
