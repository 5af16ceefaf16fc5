"""The HTTP client against servers that send bytes as they are told."""

from __future__ import annotations

import asyncio
import random

import pytest

from m2serve.engine.upstream_connection import (
    MAX_HEADER_BYTES,
    BrokenConnectionError,
    base_url,
    exchange,
)
from m2serve.errors import UsageError

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def talk(answer: bytes, *, cuts: list[int] | None = None, path: str = "") -> tuple[int, bytes, str]:
    """Status, body and what was sent, when the server answers with these bytes and hangs up."""
    sent = ""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent = (await reader.readuntil(b"\r\n\r\n")).decode()
        for start, end in zip([0, *(cuts or [])], [*(cuts or []), len(answer)], strict=True):
            writer.write(answer[start:end])
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()

    async def run() -> tuple[int, bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        url = base_url(f"http://127.0.0.1:{port}{path}")
        try:
            async with asyncio.timeout(10), exchange(url, "GET", "/x", {"A": "b"}) as got:
                return got.status, await got.read()
        finally:
            server.close()

    status, body = asyncio.run(run())
    return status, body, sent


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello"),
        (CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", 200, b"hello"),
        (OK + b"\r\nup to the end", 200, b"up to the end"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    ],
)
def test_bodies_of_every_kind(answer: bytes, status: int, body: bytes) -> None:
    assert talk(answer)[:2] == (status, body)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        OK,
        OK + b"Content-Length: 5\r\n\r\nhel",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"zz\r\nhello\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        OK + b"A: " + b"x" * (MAX_HEADER_BYTES + 1) + b"\r\n\r\n",
    ],
)
def test_what_is_broken_is_never_taken_for_complete(answer: bytes) -> None:
    with pytest.raises(BrokenConnectionError):
        talk(answer)


def test_any_cut_gives_the_same_body() -> None:
    answer = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (n, b"a" * n) for n in range(1, 9)) + b"0\r\n\r\n"
    generator = random.Random(0)
    for _ in range(10):
        cuts = sorted(generator.sample(range(1, len(answer)), 6))
        assert talk(answer, cuts=cuts)[1] == b"a" * 36


def test_what_is_sent() -> None:
    _, _, sent = talk(OK + b"Content-Length: 0\r\n\r\n", path="/prefix/v1/")
    first, *fields = sent.strip().split("\r\n")
    assert first == "GET /prefix/x HTTP/1.1"
    assert {"A: b", "Connection: close", "Content-Length: 0"} < set(fields)


def test_nobody_listens() -> None:
    async def run() -> None:
        async with exchange(base_url("http://127.0.0.1:1"), "GET", "/", {}):
            pass

    with pytest.raises(BrokenConnectionError):
        asyncio.run(run())


def test_urls() -> None:
    url = base_url("https://example.org/engine/v1/")
    assert (url.host, url.port, url.is_https, url.path) == ("example.org", 443, True, "/engine")
    assert base_url("http://[::1]:80").authority == "[::1]:80"
    assert base_url("http://a").authority == "a:80"


@pytest.mark.parametrize(
    "url",
    [
        *("", "a", "a:80", "ftp://a", "http://", "http://a:99999", "http://a:x", "http://u:p@a"),
        *("http://a?b", "http://a#b", "http://a b", "http://a\r\nX: y", "http://ä", "http://[::1"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError):
        base_url(url)
