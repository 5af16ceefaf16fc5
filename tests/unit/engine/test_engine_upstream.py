"""The engine over HTTP against fake upstreams: answers, deaths, failover, affinity, aborts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from fake_upstream import Die, FakeUpstream, Json, Pause, Step, counts_up, vllm_chunk, vllm_usage
from waiting import until

from m2serve.engine.request import EngineOutput, EngineRequest, SamplingParams
from m2serve.engine.upstream import UpstreamEngine, UpstreamModel
from m2serve.engine.upstream_dialect import UpstreamRefusedError
from m2serve.engine.upstream_member import UpstreamTimes
from m2serve.errors import EngineDeadError, OverloadedError, RequestError, UsageError

TIMES = UpstreamTimes(poll_s=0.02, health_timeout_s=0.2, probe_timeout_s=5.0)
MODEL = UpstreamModel("folder", vocab_size=5000, used_vocab_size=4900, max_model_len=2000)


def request(prompt: list[int] | None = None, **sampling: Any) -> EngineRequest:
    sampling.setdefault("max_tokens", 4)
    return EngineRequest(
        request_id="r",
        prompt_token_ids=prompt or [1, 2, 3],
        sampling=SamplingParams(eos_token_ids=(9,), **sampling),
    )


async def collect(engine: UpstreamEngine, one: EngineRequest) -> list[EngineOutput]:
    return [output async for output in engine.generate(one)]


@contextlib.asynccontextmanager
async def running(*upstreams: FakeUpstream, **options: Any) -> AsyncIterator[UpstreamEngine]:
    """An engine that is ready in front of the upstreams; at the end nothing must be left open."""
    for upstream in upstreams:
        await upstream.start()
    urls = [upstream.url for upstream in upstreams]
    engine = UpstreamEngine(urls, MODEL, lambda ids: f"<{ids}>", times=TIMES, **options)
    try:
        await asyncio.wait_for(engine.wait_ready(), 10)
        await until(lambda: all(upstream.num_probes for upstream in upstreams))
        yield engine
    finally:
        await engine.close()
        for upstream in upstreams:
            upstream.die()
        await until(lambda: not any(upstream.num_open for upstream in upstreams))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that is a coroutine."""

    def wrapped() -> None:
        asyncio.run(asyncio.wait_for(test(), 30))

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


@run
async def test_an_answer_is_streamed() -> None:
    upstream = FakeUpstream()
    async with running(upstream) as engine:
        outputs = await collect(engine, request())
        assert [output.token_ids for output in outputs] == [[100], [101], [102], [103]]
        assert [o.finish_reason for o in outputs] == [None, None, None, "length"]
        assert {output.request_id for output in outputs} == {"r"}
        assert upstream.requests[0]["model"] == "served"
        stats = engine.stats()
        assert (stats.num_running_reqs, stats.num_waiting_reqs) == (0, 0)
        assert (stats.prompt_tokens, stats.generation_tokens) == (3, 4)


@run
async def test_ready_is_a_token_and_info_is_the_upstreams_context() -> None:
    async with running(FakeUpstream(), FakeUpstream(max_model_len=None)) as engine:
        await until(lambda: engine.info.max_model_len == 1000)
        assert engine.info.device == "vllm"
        assert (engine.info.vocab_size, engine.info.used_vocab_size) == (5000, 4900)
        assert engine.health().ready
        with pytest.raises(RequestError, match="1000"):
            await collect(engine, request([5] * 1000))


@run
async def test_healthy_is_not_ready() -> None:
    """vLLM's CPU build answers /health while its first request would kill it."""

    def dies(body: Json) -> Iterator[Step]:
        yield {"error": {"message": "EngineCore encountered an issue", "code": 500}}

    upstream = FakeUpstream(probe=dies)
    await upstream.start()
    engine = UpstreamEngine([upstream.url], MODEL, str, times=TIMES)
    await engine.start()
    await until(lambda: upstream.num_probes > 2)
    health = engine.health()
    assert (health.state, health.ready, health.alive) == ("starting", False, True)
    assert "EngineCore" in health.detail
    with pytest.raises(EngineDeadError):
        await collect(engine, request())
    upstream.probe = counts_up
    await asyncio.wait_for(engine.wait_ready(), 10)
    await engine.close()
    assert engine.health().state == "closed"
    upstream.die()


@run
async def test_an_upstream_that_starts_later_is_waited_for() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    upstream = FakeUpstream(port=port)
    engine = UpstreamEngine([upstream.url], MODEL, str, times=TIMES)
    waiting = asyncio.create_task(engine.wait_ready())
    await until(lambda: "no answer" in engine.health().detail)
    await upstream.start()
    assert (await asyncio.wait_for(waiting, 10)).max_model_len == 1000
    await engine.close()
    upstream.die()


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        (FakeUpstream(api_key="secret"), "--upstream-api-key"),
        (FakeUpstream(probe=lambda body: [{"choices": [{"text": "hi"}]}]), "no token ids"),
    ],
    ids=["wrong key", "no token ids"],
)
def test_what_waiting_does_not_heal_fails_the_start(upstream: FakeUpstream, message: str) -> None:
    async def test() -> None:
        await upstream.start()
        engine = UpstreamEngine([upstream.url], MODEL, str, times=TIMES)
        with pytest.raises(UpstreamRefusedError, match=message):
            await asyncio.wait_for(engine.wait_ready(), 10)
        await engine.close()
        upstream.die()

    asyncio.run(test())


@run
async def test_the_key_is_sent() -> None:
    async with running(FakeUpstream(api_key="secret"), api_key="secret") as engine:
        assert len(await collect(engine, request())) == 4


@pytest.mark.parametrize(
    "urls", [["ftp://a"], ["localhost:8000"], [""], ["http://a", "http://a/v1"]]
)
def test_urls_that_are_none_or_twice(urls: list[str]) -> None:
    with pytest.raises(UsageError):
        UpstreamEngine(urls, MODEL, str)


@run
async def test_a_death_in_mid_stream_ends_the_request_and_is_seen() -> None:
    def dies(body: Json) -> Iterator[Step]:
        yield vllm_chunk([100])
        yield Die()

    upstream = FakeUpstream(script=dies)
    async with running(upstream) as engine:
        outputs = engine.generate(request())
        assert (await anext(outputs)).token_ids == [100]
        with pytest.raises(EngineDeadError):
            await anext(outputs)
        await until(lambda: not engine.health().ready)
        assert engine.health().state == "restarting"
        with pytest.raises(EngineDeadError):
            await collect(engine, request())
        upstream.script = counts_up
        await upstream.start()
        await asyncio.wait_for(engine.wait_ready(), 10)
        assert len(await collect(engine, request())) == 4


@run
async def test_an_error_event_in_mid_stream_ends_the_request() -> None:
    def fails(body: Json) -> Iterator[Step]:
        yield vllm_chunk([100])
        yield {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}

    upstream = FakeUpstream(script=fails)
    async with running(upstream) as engine:
        with pytest.raises(EngineDeadError, match="EngineCore died"):
            await collect(engine, request())
        # The engine generates all the same, so it stays up after a second look.
        await until(lambda: upstream.num_probes > 1)
        assert engine.health().ready


@run
async def test_a_stream_that_ends_early_is_an_error() -> None:
    upstream = FakeUpstream(script=lambda body: [vllm_chunk([100])])
    async with running(upstream) as engine:
        with pytest.raises(EngineDeadError, match="broke off"):
            await collect(engine, request())


@run
async def test_an_upstream_that_hangs_is_given_up() -> None:
    upstream = FakeUpstream(script=lambda body: [vllm_chunk([100]), Pause(), *counts_up(body)])
    async with running(upstream) as engine:
        stream = asyncio.create_task(collect(engine, request()))
        await until(lambda: engine.stats().num_running_reqs == 1)
        upstream.health = None
        with pytest.raises(EngineDeadError, match="did not answer"):
            await stream
        assert not engine.health().ready


@run
async def test_leaving_a_stream_closes_its_connection() -> None:
    upstream = FakeUpstream(script=lambda body: [vllm_chunk([100]), Pause()])
    async with running(upstream) as engine:
        outputs = engine.generate(request())
        assert (await anext(outputs)).token_ids == [100]
        assert engine.stats().num_running_reqs == 1
        await outputs.aclose()
        await until(lambda: upstream.num_left == 1)
        assert upstream.num_open == 0
        assert engine.stats().num_running_reqs == 0


@run
async def test_a_cancelled_wait_for_the_first_token_closes_the_connection() -> None:
    upstream = FakeUpstream(script=lambda body: [Pause()])
    async with running(upstream) as engine:
        task = asyncio.create_task(collect(engine, request()))
        await until(lambda: upstream.num_open == 1)
        assert engine.stats().num_waiting_reqs == 1
        task.cancel()
        await until(lambda: upstream.num_left == 1)
        assert engine.stats().num_waiting_reqs == 0
        assert engine.health().ready


@pytest.mark.parametrize(
    ("status", "error", "raised"),
    [
        (400, {"error": {"message": "logprobs is too large", "code": 400}}, RequestError),
        (422, {"detail": "no"}, RequestError),
        (404, {"error": {"message": "no such model"}}, EngineDeadError),
        (401, {"error": "Unauthorized"}, EngineDeadError),
        (500, {"error": {"message": "EngineDeadError"}}, EngineDeadError),
        (503, {"error": {"message": "starting", "code": "engine_not_ready"}}, EngineDeadError),
        (503, {"error": {"message": "full", "code": "overloaded"}}, OverloadedError),
        (429, {"error": {"message": "slow down"}}, OverloadedError),
        (302, {}, EngineDeadError),
    ],
)
def test_statuses(status: int, error: Json, raised: type[Exception]) -> None:
    async def test() -> None:
        upstream = FakeUpstream(status=status, error=error)
        async with running(upstream) as engine:
            with pytest.raises(raised) as caught:
                await collect(engine, request())
            assert type(caught.value) is not RequestError or "refused" in str(caught.value)

    asyncio.run(test())


@run
async def test_a_refused_request_does_not_shake_the_engine() -> None:
    upstream = FakeUpstream(status=400)
    async with running(upstream) as engine:
        for _ in range(3):
            with pytest.raises(RequestError):
                await collect(engine, request())
        assert upstream.num_probes == 1
        assert engine.health().ready


@run
async def test_a_request_that_had_not_begun_goes_to_another() -> None:
    upstreams = [FakeUpstream(), FakeUpstream()]
    async with running(*upstreams) as engine:
        for seed in range(20):
            await collect(engine, request([seed + 10]))
        assert all(upstream.requests for upstream in upstreams)
        upstreams[0].status = 500
        for seed in range(20):
            assert len(await collect(engine, request([seed + 10]))) == 4


@run
async def test_a_death_fails_nothing_that_waits_and_the_dead_comes_back() -> None:
    """Each of 12 requests waits for its first token when one of two upstreams dies."""
    pause = Pause()
    upstreams = [
        FakeUpstream(script=lambda body: [pause, *counts_up(body)]),
        FakeUpstream(script=lambda body: [pause, *counts_up(body)]),
    ]
    async with running(*upstreams) as engine:
        tasks = [asyncio.create_task(collect(engine, request([i + 1]))) for i in range(12)]
        await until(lambda: sum(upstream.num_open for upstream in upstreams) == 12)
        assert min(upstream.num_open for upstream in upstreams) >= 4
        upstreams[0].die()
        await until(lambda: upstreams[1].num_open == 12)
        pause.event.set()
        answers = await asyncio.gather(*tasks)
        assert all(outputs[-1].finish_reason == "length" for outputs in answers)
        assert engine.health().ready
        num_probes = upstreams[0].num_probes
        await upstreams[0].start()
        await until(lambda: upstreams[0].num_probes > num_probes and not engine.health().detail)


@run
async def test_what_streams_from_the_dead_fails_and_what_streams_from_the_living_goes_on() -> None:
    pause = Pause()

    def script(body: Json) -> list[Step]:
        return [vllm_chunk([100]), pause, vllm_chunk([101], "length"), vllm_usage(1)]

    upstreams = [FakeUpstream(script=script), FakeUpstream(script=script)]
    async with running(*upstreams) as engine:
        tasks = [asyncio.create_task(collect(engine, request([i + 1]))) for i in range(10)]
        await until(lambda: engine.stats().num_running_reqs == 10)
        num_dying = upstreams[0].num_open
        upstreams[0].die()
        await until(lambda: engine.stats().num_running_reqs == 10 - num_dying)
        pause.event.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [result for result in results if isinstance(result, Exception)]
        assert len(failed) == num_dying
        assert all(isinstance(error, EngineDeadError) for error in failed)


@run
async def test_a_conversation_stays_on_its_upstream() -> None:
    upstreams = [FakeUpstream(), FakeUpstream(), FakeUpstream()]
    async with running(*upstreams) as engine:
        for conversation in range(6):
            prompt = [conversation + 1] * 200
            before = [len(upstream.requests) for upstream in upstreams]
            for turn in range(4):
                await collect(engine, request(prompt + [turn] * 130 * turn))
            after = [len(upstream.requests) for upstream in upstreams]
            assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 0, 4]


@run
async def test_cached_tokens_come_with_the_last_output() -> None:
    def script(body: Json) -> list[Step]:
        return [vllm_chunk([100]), vllm_chunk([101], "length"), vllm_usage(3, cached_tokens=2)]

    async with running(FakeUpstream(script=script)) as engine:
        outputs = await collect(engine, request())
        assert [output.num_cached_tokens for output in outputs] == [0, 2]
        stats = engine.stats()
        assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (3, 2)


@run
async def test_garbage_is_an_error_of_the_upstream() -> None:
    garbage: list[Json] = [
        {"choices": [{"token_ids": ["x"]}]},
        {"choices": [{"token_ids": None}]},
        {"choices": 5},
        {"choices": [1, 2]},
        {"usage": 5, "choices": []},
    ]
    upstream = FakeUpstream()
    async with running(upstream) as engine:
        for step in garbage:
            upstream.script = lambda body, step=step: [step]  # type: ignore[misc]
            with pytest.raises(EngineDeadError):
                await collect(engine, request())
