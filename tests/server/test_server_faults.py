"""Clients that leave, engines that die, queues that fill: what is running is always ended."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from fake_engine import FakeEngine, Say, goes_on, says, tiny_tokenizer
from fake_server import MODEL, FakeServer, chat_body, fake_server, sse
from openai import OpenAI
from waiting import wait_for

from m2serve.engine.client import EngineHealth
from m2serve.errors import EngineDeadError, RequestError

TOKEN = tiny_tokenizer().encode("a")[0]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running
        wait_for(lambda: not running.engine.active)
        assert running.server.num_running == 0


def stuck() -> Say:
    return Say([TOKEN], wait=lambda: asyncio.sleep(600))


def queued(request: Any) -> Iterator[Say]:
    yield stuck()


def after_first_token(request: Any) -> Iterator[Say]:
    yield Say([TOKEN])
    yield stuck()


def in_tool_call(request: Any) -> Iterator[Say]:
    text = '</think><minimax:tool_call>\n<invoke name="f">\n<parameter name="a">xyz'
    yield Say(tiny_tokenizer().encode(text, allow_control=True))
    yield stuck()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", [queued, after_first_token, in_tool_call, goes_on()])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_leaving_aborts_every_sequence(
    server: FakeServer, phase: Callable[..., Any], stream: bool, path: str
) -> None:
    server.engine.script = phase
    body = {"stream": stream, "n": 3, "model": MODEL}
    if path.endswith("/chat/completions"):
        tool = {"type": "function", "function": {"name": "f"}}
        body |= {**chat_body(tools=[tool]), **body}
    else:
        body["prompt"] = "x"
    content = json.dumps(body).encode()
    with server.connect() as sock:
        sock.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(content), content)
        )
        if stream and phase is not queued:
            assert sock.recv(10).startswith(b"HTTP/1.1 2")
        wait_for(lambda: len(server.engine.active) == 3)
    wait_for(lambda: not server.engine.active)
    assert len(server.engine.aborted) == 3
    success = 'vllm:request_success_total{engine="0",finished_reason="abort"'
    wait_for(lambda: server.metric(success) == 3)


def test_breaking_off_with_the_official_client(server: FakeServer) -> None:
    server.engine.script = goes_on()
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True
    )
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    wait_for(lambda: len(server.engine.aborted) == 1)


def raising(error: Exception, after: int) -> Callable[..., Iterator[Say]]:
    def script(request: Any) -> Iterator[Say]:
        for _ in range(after):
            yield Say([TOKEN])
        yield Say(error=error)

    return script


ERRORS: list[tuple[Exception, int, str]] = [
    (EngineDeadError("died at 0x7f00 in /home/secret"), 503, "server_error"),
    (RuntimeError("address 0x7f00 in /home/secret"), 500, "server_error"),
    (RequestError("the prompt is secretly wrong"), 400, "invalid_request_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_have_a_status(
    server: FakeServer, error: Exception, status: int, kind: str, stream: bool
) -> None:
    server.engine.script = raising(error, 0)
    response = server.chat(stream=stream)
    assert response.status_code == status
    body = response.json()["error"]
    assert body["type"] == kind
    assert "/home" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)
    if isinstance(error, RequestError):
        assert body["message"] == str(error)


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
def test_errors_later_end_a_stream_with_one_error_event(
    server: FakeServer, error: Exception, status: int, kind: str
) -> None:
    server.engine.script = raising(error, 3)
    events = sse(server.chat(stream=True, n=2))
    assert "error" in events[-1]
    assert events[-1]["error"]["type"] == kind
    assert sum("error" in event for event in events) == 1
    assert "/home" not in json.dumps(events)
    assert server.chat().status_code == status
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.APIError):
        for _ in client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True
        ):
            pass


def test_an_unknown_error_is_logged_with_its_traceback(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        server.engine.script = raising(RuntimeError("what really happened"), 2)
        server.chat(stream=True)
        wait_for(lambda: "what really happened" in caplog.text)


def test_the_engine_gives_up_on_one_request(server: FakeServer) -> None:
    def script(request: Any) -> Iterator[Say]:
        yield Say(finish_reason="error", message="The model gave NaN for this prompt.")

    server.engine.script = script
    response = server.complete()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The model gave NaN for this prompt."
    success = 'vllm:request_success_total{engine="0",finished_reason="error"'
    assert server.metric(success) == 1


def test_an_engine_that_ends_without_a_reason(server: FakeServer) -> None:
    server.engine.script = lambda request: [Say([TOKEN])]
    assert server.complete().status_code == 503


@pytest.mark.parametrize(
    ("state", "ready", "alive"),
    [("starting", False, True), ("restarting", False, True), ("dead", False, False)],
)
def test_an_engine_that_is_not_ready(
    server: FakeServer, state: Any, ready: bool, alive: bool
) -> None:
    server.engine.state = EngineHealth(state, ready, alive, "loading shard 3 of 9", 0.33)
    response = server.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"state": state, "detail": "loading shard 3 of 9", "progress": 0.33}
    assert server.get("/health").status_code == (200 if alive else 503)
    for response in (server.chat(), server.complete(stream=True)):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "engine_not_ready"
    assert server.get("/v1/models").json()["data"][0]["max_model_len"] is None
    server.engine.state = EngineHealth("ready", True, True)
    assert server.get("/ready").status_code == 200
    assert server.chat().status_code == 200


def test_a_silent_stream_is_kept_alive_with_comments() -> None:
    engine = FakeEngine()

    def script(request: Any) -> Iterator[Say]:
        yield Say(wait=lambda: asyncio.sleep(0.35))
        yield from says("</think>Hi")(request)

    engine.script = script
    with fake_server(engine, sse_keep_alive_s=0.1) as server:
        text = server.chat(stream=True).text
        assert text.startswith("\n\n\n\n")
        client = OpenAI(base_url=f"{server.url}/v1", api_key="x")
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hi"


def test_a_full_queue_refuses_and_recovers() -> None:
    engine = FakeEngine(queued)
    with fake_server(engine, max_num_queued_reqs=2) as server:
        threads = [threading.Thread(target=leave_after, args=(server, 2.0)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(engine.active) == 2)
        for stream in (False, True):
            response = server.chat(stream=stream)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "overloaded"
            assert int(response.headers["retry-after"]) >= 1
        rejected = 'vllm:admission_rejections_total{engine="0",model_name="%s",reason="queued_reqs"'
        assert server.metric(rejected % MODEL) == 2
        for thread in threads:
            thread.join()
        engine.script = says("</think>Hi")
        wait_for(lambda: server.chat().status_code == 200)


def leave_after(server: FakeServer, timeout_s: float) -> None:
    try:
        httpx2.post(f"{server.url}/v1/completions", json={"prompt": "x"}, timeout=timeout_s)
    except httpx2.TimeoutException:
        return


def test_queued_tokens_are_bounded_but_one_request_always_fits() -> None:
    engine = FakeEngine(queued)
    with fake_server(engine, max_num_queued_tokens=10) as server:
        thread = threading.Thread(target=leave_after, args=(server, 1.0))
        thread.start()
        wait_for(lambda: len(engine.active) == 1)
        assert server.complete(prompt=[5] * 10).status_code == 503
        thread.join()
        wait_for(lambda: not engine.active)
        engine.script = says("</think>Hi")
        assert server.complete(prompt=[5] * 100).status_code == 200


def test_many_at_once_each_get_their_own_answer() -> None:
    def echo(request: Any) -> Iterator[Say]:
        for id in request.prompt_token_ids:
            yield Say([id], wait=lambda: asyncio.sleep(0))
        yield Say(finish_reason="length")

    with fake_server(FakeEngine(echo)) as server:

        async def run() -> list[str]:
            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
                return await asyncio.gather(*(ask(client, i) for i in range(64)))

        async def ask(client: httpx2.AsyncClient, i: int) -> str:
            body = {"prompt": f"number {i}", "stream": True}
            response = await client.post("/v1/completions", json=body)
            return "".join(e["choices"][0]["text"] for e in sse(response) if e != "[DONE]")

        assert asyncio.run(run()) == [f"number {i}" for i in range(64)]
        wait_for(lambda: not server.engine.active)
