"""`m2 chat`: what Ctrl-C ends, and whether a server is there."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from m2serve.cli.chat import CtrlC
from m2serve.cli.private_server import answers, free_port


def test_ctrl_c_ends_every_answer_and_the_conversation_goes_on() -> None:
    ended: list[int] = []

    async def answer(number: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(number)

    async def talk() -> None:
        with CtrlC() as ctrl_c:
            for number in range(3):
                loop = asyncio.get_running_loop()
                loop.call_later(0.05, signal.raise_signal, signal.SIGINT)
                await ctrl_c.ends(answer(number))

    before = signal.getsignal(signal.SIGINT)
    asyncio.run(asyncio.wait_for(talk(), 30))
    assert ended == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_before_an_answer_began_is_no_error() -> None:
    async def talk() -> None:
        with CtrlC() as ctrl_c:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: ctrl_c._task is not None and ctrl_c._task.cancel())
            await ctrl_c.ends(asyncio.sleep(60))

    asyncio.run(asyncio.wait_for(talk(), 30))


def test_ctrl_c_at_the_prompt_leaves() -> None:
    async def talk() -> None:
        with CtrlC():
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(talk())


def test_an_answer_that_fails_says_so() -> None:
    async def answer() -> None:
        raise ValueError("broken")

    async def talk() -> None:
        with CtrlC() as ctrl_c:
            await ctrl_c.ends(answer())

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(talk())


class Locked(BaseHTTPRequestHandler):
    """Answers whoever has the key."""

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == "Bearer secret"
        body = b'{"data": []}' if is_known else b'{"error": {"message": "no"}}'
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Locked)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("key", ["secret", "wrong", None])
def test_a_server_that_wants_a_key_is_there(key: str | None, url: str) -> None:
    assert asyncio.run(answers(url, key))


def test_nobody_answers_on_a_free_port() -> None:
    assert not asyncio.run(answers(f"http://127.0.0.1:{free_port()}", "secret"))
