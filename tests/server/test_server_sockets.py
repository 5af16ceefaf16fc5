"""Clients that send bytes no HTTP library would: slowly, endlessly, or not at all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest
from fake_engine import says
from fake_server import FakeServer, chat_body, fake_server
from waiting import wait_for

from m2serve.server import http_protocol

HEADER_TIMEOUT_S = 0.5
BODY_TIMEOUT_S = 0.7


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    limits = {
        "header_timeout_s": HEADER_TIMEOUT_S,
        "body_timeout_s": BODY_TIMEOUT_S,
        "max_header_bytes": 16 * 1024,
        "max_connections": 20,
    }
    with fake_server(**limits) as running:
        running.engine.script = says("</think>Hi")
        yield running


@pytest.fixture(autouse=True)
def _still_serves(server: FakeServer) -> Iterator[None]:
    yield
    wait_for(lambda: len(server.server.server_state.connections) <= 1)
    assert server.chat().status_code == 200


def read_all(sock: socket.socket) -> bytes:
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def read_answer(sock: socket.socket) -> bytes:
    """One answer with a Content-Length, from a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def sends(sock: socket.socket, data: bytes, count: int) -> bool:
    """Whether the other side let us send it all."""
    try:
        for _ in range(count):
            sock.sendall(data)
            time.sleep(0.001)
    except OSError:
        return False
    return True


def status_of(data: bytes) -> int:
    """Of an answer whose body is OpenAI's error."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["message"], data
    return int(head.split()[1])


def post(length: int, body: bytes, more: bytes = b"") -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n%s\r\n%s" % (length, more, body)
    )


@pytest.mark.parametrize("sent", [b"GET /he", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_header_that_never_ends_is_answered_and_closed(server: FakeServer, sent: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(sent)
        assert status_of(read_all(sock)) == 408


def test_an_idle_connection_is_closed_without_a_word(server: FakeServer) -> None:
    with server.connect() as sock:
        assert read_all(sock) == b""


def test_a_header_that_drips_is_closed(server: FakeServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        sock.settimeout(0.05)
        end = time.monotonic() + 10
        data = b""
        while time.monotonic() < end:
            try:
                sock.sendall(b"X-A: b\r\n")
                data += sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if b"408" in data:
                break
        assert b" 408 " in data


def test_blank_lines_do_not_keep_a_connection(server: FakeServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(sock).startswith(b"HTTP/1.1 200")
        sock.sendall(b"\r\n")
        assert status_of(read_all(sock)) == 408


@pytest.mark.parametrize(
    "header",
    [
        b"X-A: " + b"a" * 10_000_000,
        b"X-A: b\r\n" * 1000,
        b"X-A: " + b"a" * 20_000 + b"\r\n",
    ],
)
def test_a_header_too_large(server: FakeServer, header: bytes) -> None:
    with server.connect() as sock:
        try:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + header)
            sock.sendall(b"\r\n\r\n")
        except OSError:
            pass  # closed while we were sending: refused all the same
        data = read_all(sock)
        assert not data or status_of(data) == 431


def test_a_long_url(server: FakeServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(read_all(sock)) == 431


def test_a_body_that_stalls(server: FakeServer) -> None:
    with server.connect() as sock:
        sock.sendall(post(1000, b'{"mess'))
        assert status_of(read_answer(sock)) == 408


def test_a_trailer_without_end_is_cut(server: FakeServer) -> None:
    with server.connect() as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-A: "
        )
        assert not sends(sock, b"a" * 65536, 1000)


def test_an_announced_body_too_large_is_answered_before_it_comes(server: FakeServer) -> None:
    with server.connect() as sock:
        sock.sendall(post(2**60, b"{"))
        assert status_of(read_answer(sock)) == 413


@pytest.mark.parametrize("completes", [True, False])
def test_an_early_answer_ends_only_the_connection_of_who_does_not_finish(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, completes: bool
) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.2)
    request = b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(request + b"ab")
        assert status_of(read_answer(sock)) == 404
        if completes:
            sock.sendall(b"cd")
            time.sleep(0.3)
            sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(sock).startswith(b"HTTP/1.1 200")
        else:
            assert read_all(sock) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        post(-5, b""),
        post(5, b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"),
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-A b\r\n\r\n",
    ],
)
def test_bytes_that_are_not_http(server: FakeServer, data: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(data)
        assert status_of(read_all(sock)) == 400


def test_connections_are_counted(server: FakeServer) -> None:
    socks = [server.connect() for _ in range(25)]
    try:
        answers = []
        for sock in socks:
            sock.settimeout(0.2)
            try:
                answers.append(sock.recv(65536))
            except TimeoutError:
                continue
        refused = [answer for answer in answers if b" 503 " in answer]
        assert len(refused) >= 5
        assert all(status_of(answer) == 503 for answer in refused)
    finally:
        for sock in socks:
            sock.close()


def test_a_client_that_leaves_before_its_body_is_no_error(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with server.connect() as sock:
        sock.sendall(post(1000, b'{"mess'))
        wait_for(lambda: len(server.server.server_state.tasks) > 0)
    wait_for(lambda: len(server.server.server_state.tasks) == 0)
    assert "Traceback" not in caplog.text


def test_expect_continue_and_keep_alive_and_pipelining(server: FakeServer) -> None:
    body = json.dumps(chat_body()).encode()
    with server.connect() as sock:
        sock.sendall(post(len(body), b"", b"Expect: 100-continue\r\n"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert read_answer(sock).startswith(b"HTTP/1.1 200 ")
        request = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        sock.sendall(request * 3)
        data = b""
        while data.count(b"HTTP/1.1 200 ") < 3 or data.count(b"}") < 3:
            data += sock.recv(65536)
