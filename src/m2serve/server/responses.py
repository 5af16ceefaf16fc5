"""Sending answers while watching for the client to leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from m2serve.errors import M2Error
from m2serve.server.errors import describe

logger = logging.getLogger(__name__)

# A blank line is no event. A comment would be usual, but clients that strip each piece they read
# (the load generator of vLLM does) glue it to the event that follows and lose that one.
KEEP_ALIVE = b"\n\n"
DONE = b"data: [DONE]\n\n"

T = TypeVar("T")
_encoder = msgspec.json.Encoder()


class ClientLeftError(Exception):
    """Nobody is there to read the answer."""


def event(data: object) -> bytes:
    """One server-sent event."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


def json_response(
    data: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(_encoder.encode(data), status, headers, media_type="application/json")


async def until_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or ClientLeftError as soon as the connection is gone.

    The body must have been read. `work` has ended, cancelled or not, when this returns.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends the pieces of `events` as they come.

    The status line waits for the first piece, so what fails before it is an ordinary HTTP error.
    What fails later becomes an event with an error body, and the stream ends without [DONE].
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(
            {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_client_leaves(receive, self._send_all(send))
        except ClientLeftError:
            logger.debug("the client left a stream")

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            piece = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send_piece(send, piece)
            try:
                async for piece in events:
                    await _send_piece(send, piece)
            except Exception as error:
                if not isinstance(error, M2Error):
                    logger.exception("a stream failed")
                await _send_piece(send, event(describe(error)[1]))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
