"""The limits uvicorn lacks: bytes of the header, time for the header, open connections.

Measured with uvicorn 0.54 and httptools: a partial header and an idle connection stay open without
end, and a header of 10 MB is swallowed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from m2serve.server.errors import error_body

MAX_HEADERS = 128
LINGER_S = 5.0


@dataclass(frozen=True)
class HttpLimits:
    max_header_bytes: int = 64 * 1024
    header_timeout_s: float = 10.0
    max_connections: int = 2048


def guarded_protocol(limits: HttpLimits) -> type[HttpToolsProtocol]:
    """A protocol class for `uvicorn.Config(http=...)`."""
    return type("GuardedProtocol", (_GuardedProtocol,), {"limits": limits})


class _GuardedProtocol(HttpToolsProtocol):
    limits = HttpLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._idle_bytes = 0  # received since the last header or piece of a body was complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._answer(503, "Too many connections are open.", "overloaded")
            return
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        self._stop_linger()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_deadline()
        # httptools keeps an unfinished header or trailer to itself, so what came in is counted.
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > self.limits.max_header_bytes:
            self._refuse_header()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse_header()

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        self._stop_deadline()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refuse_header()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        self._stop_linger()
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """A client that is still sending its body gets a moment to read the answer, then no more.

        Closing at once would reset the connection, and the answer would be lost with it.
        """
        more_body = self.cycle is not None and self.cycle.more_body
        super().on_response_complete()
        if more_body and not self.transport.is_closing():
            self._linger = self.loop.call_later(LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._answer(400, "The bytes received are not a valid HTTP/1.1 request.", None)

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_timeout_s, self._expire)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _expire(self) -> None:
        self._deadline = None
        if not self._idle_bytes:
            self.transport.close()
            return
        seconds = f"{self.limits.header_timeout_s:g}"
        self._answer(408, f"No complete request header came within {seconds} seconds.", None)

    def _refuse_header(self) -> None:
        self._answer(
            431,
            f"The request header is larger than {self.limits.max_header_bytes} bytes or has more "
            f"than {MAX_HEADERS} fields.",
            "header_too_large",
        )

    def _answer(self, status: int, message: str, code: str | None) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        self._stop_deadline()
        if self.cycle is None or self.cycle.response_complete:
            body = msgspec.json.encode(error_body(status, message, code=code))
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
