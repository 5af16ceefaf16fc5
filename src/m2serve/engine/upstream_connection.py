"""One HTTP/1.1 request on a connection of its own, parsed by httptools (llhttp, in C). No torch.

An engine sends an event for each token of each answer, so what a chunk costs here bounds how many
tokens per second a server in front can pass on; a general client takes several times as long. A
connection of its own makes an abort what it is for the engine: the end of the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from m2serve.errors import UsageError

CONNECT_TIMEOUT_S = 5.0
MAX_HEADER_BYTES = 64 * 1024


class BrokenConnectionError(Exception):
    """No connection, or it ended before the answer did; the text says why."""


@dataclass(frozen=True)
class BaseUrl:
    """Where an engine is; `path` is what stands before its paths, without a slash at the end."""

    text: str
    host: str
    port: int
    is_https: bool
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def base_url(url: str) -> BaseUrl:
    """Read a URL, with or without /v1 at its end; raises UsageError when it is none."""
    text = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no URL of an engine; one looks like http://127.0.0.1:8001")
    if parts.username is not None:
        raise UsageError("the URL of an upstream holds a user; give --upstream-api-key instead")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{url!r} holds characters that no URL has")
    is_https = parts.scheme == "https"
    return BaseUrl(text, host, port or (443 if is_https else 80), is_https, parts.path)


class Answer(asyncio.Protocol):
    """`status` is known once `exchange` yields it; `pieces` and `read` give the body."""

    def __init__(self) -> None:
        self.status = 0
        self._parser = httptools.HttpResponseParser(self)
        self._num_header_bytes = 0
        self._pieces: deque[bytes] = deque()
        self._is_complete = False
        self._ends_with_connection = True
        self._failure: str | None = None
        self._changed = asyncio.Event()

    async def headers_arrived(self) -> None:
        """Raises BrokenConnectionError."""
        while not self.status:
            await self._wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises BrokenConnectionError."""
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._is_complete:
                return
            await self._wait()

    async def read(self) -> bytes:
        """The whole body; raises BrokenConnectionError."""
        return b"".join([piece async for piece in self.pieces()])

    async def _wait(self) -> None:
        if self._failure is not None:
            raise BrokenConnectionError(self._failure)
        self._changed.clear()
        await self._changed.wait()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self._num_header_bytes += len(data)
        try:
            if self._num_header_bytes > MAX_HEADER_BYTES:
                raise httptools.HttpParserError(f"a header of more than {MAX_HEADER_BYTES} bytes")
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._failure = f"what it sends is no HTTP: {error}"
        self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._failure = self._failure or f"the connection ended: {error or 'closed'}"
        self._changed.set()

    def eof_received(self) -> None:
        """A body without a length ends with the connection, which llhttp cannot see."""
        self._is_complete = self._is_complete or (self.status > 0 and self._ends_with_connection)

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._is_complete = True


@asynccontextmanager
async def exchange(
    url: BaseUrl, method: str, path: str, headers: Mapping[str, str], content: bytes = b""
) -> AsyncIterator[Answer]:
    """Send a request and yield the answer once its header is there; leaving closes the connection.

    Raises BrokenConnectionError. However long the engine takes, only connecting has a time limit.
    """
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context() if url.is_https else None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, answer = await loop.create_connection(
                Answer, url.host, url.port, ssl=context
            )
    except TimeoutError as error:
        raise BrokenConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise BrokenConnectionError(error.strerror or str(error)) from error
    try:
        fields = {
            "Host": url.authority,
            "Connection": "close",
            "Content-Length": str(len(content)),
            **headers,
        }
        lines = [f"{method} {url.path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + content)
        await answer.headers_arrived()
        yield answer
    finally:
        transport.abort()
