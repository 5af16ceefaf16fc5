"""An HTTP server that answers like vLLM or SGLang, as a test tells it to, and can drop dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Pause:
    """A step of a script: nothing is sent until the event is set."""

    event: asyncio.Event = field(default_factory=asyncio.Event)


class Die(Exception):
    """A step of a script: all connections of the server break."""


Step = Json | Pause | Die
Script = Callable[[Json], Iterable[Step]]


def vllm_chunk(ids: list[int], finish_reason: str | None = None, **fields: Any) -> Json:
    choice = {"index": 0, "text": "", "token_ids": ids, "finish_reason": finish_reason, **fields}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}


def vllm_usage(prompt_tokens: int, cached_tokens: int | None = None) -> Json:
    details = None if cached_tokens is None else {"cached_tokens": cached_tokens}
    usage = {"prompt_tokens": prompt_tokens, "prompt_tokens_details": details}
    return {"id": "cmpl-1", "choices": [], "usage": usage}


def counts_up(body: Json) -> Iterator[Step]:
    """max_tokens ids from 100 up, each in a chunk of its own."""
    count = body["max_tokens"]
    for i in range(count):
        yield vllm_chunk([100 + i], "length" if i == count - 1 else None)
    yield vllm_usage(len(body["prompt"]))


@dataclass
class FakeUpstream:
    """`script` answers each POST but probes, `status` other than 200 with `error`.

    `requests` holds the bodies of the POSTs that were no probes; `num_left` counts clients that
    closed the connection before the end of their answer.
    """

    script: Script = counts_up
    probe: Script = counts_up
    owner: str = "vllm"
    max_model_len: int | None = 1000
    status: int = 200
    health: int | None = 200
    error: Json = field(default_factory=lambda: {"error": {"message": "no", "code": 400}})
    api_key: str = ""
    port: int = 0
    requests: list[Json] = field(default_factory=list)
    num_probes: int = 0
    num_left: int = 0
    num_open: int = 0
    server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    def die(self) -> None:
        """Close the port and break every connection, as the death of a process does."""
        assert self.server is not None
        self.server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                header = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = header.split(" ", 2)
                length = next((int(v) for n, v in _fields(header) if n == "content-length"), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                allowed = not self.api_key or f"Bearer {self.api_key}" in header
                if not allowed:
                    _write(writer, 401, {"error": {"message": "who are you"}})
                elif method == "GET":
                    await self._get(writer, path)
                else:
                    await self._post(reader, writer, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _get(self, writer: asyncio.StreamWriter, path: str) -> None:
        if path == "/health":
            if self.health is None:
                await asyncio.Event().wait()
            _write(writer, self.health or 200, {})
        elif path == "/v1/models":
            card = {"id": "served", "owned_by": self.owner, "max_model_len": self.max_model_len}
            _write(writer, 200, {"data": [card]})
        else:
            _write(writer, 404, {"detail": "Not Found"})

    async def _post(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Json
    ) -> None:
        is_probe = body.get("prompt", body.get("input_ids")) == [0]
        if is_probe:
            self.num_probes += 1
        else:
            self.requests.append(body)
            if self.status != 200:
                _write(writer, self.status, self.error)
                return
        script = self.probe if is_probe else self.script
        if not body["stream"]:
            _write(writer, 200, next(step for step in script(body) if isinstance(step, dict)))
            return
        self.num_open += 1
        gone = asyncio.ensure_future(reader.read(1))
        finished = False
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            async for event in self._events(script(body), gone):
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await asyncio.sleep(0)
            finished = not gone.done()
            writer.write(b"0\r\n\r\n")
        finally:
            self.num_open -= 1
            self.num_left += not finished
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await gone

    async def _events(
        self, steps: Iterable[Step], gone: asyncio.Future[bytes]
    ) -> AsyncIterator[bytes]:
        for step in steps:
            if gone.done():
                return
            if isinstance(step, Pause):
                waiting = asyncio.ensure_future(step.event.wait())
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            elif isinstance(step, Die):
                self.die()
                return
            else:
                yield b": comment\n\ndata: " + json.dumps(step).encode() + b"\n\n"
        if not gone.done():
            yield b"data: [DONE]\n\n"


def _fields(header: str) -> Iterator[tuple[str, str]]:
    for line in header.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        yield name.lower(), value.strip()


def _write(writer: asyncio.StreamWriter, status: int, body: Json) -> None:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
