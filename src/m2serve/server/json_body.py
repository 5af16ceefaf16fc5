"""Reads the body of a POST: bounded in bytes, time, depth and number of values, strictly JSON.

What the decoder lets through: an object, no NaN, no infinity, no lone surrogate, valid UTF-8. A
key that occurs twice counts with its last value, as in the parsers of the languages clients are
written in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from m2serve.errors import RequestError

MAX_JSON_DEPTH = 128
# 30 MB of "[]," take six seconds and a gigabyte to decode, and nothing else runs meanwhile.
MAX_JSON_VALUES = 2_000_000


class DecodedRequest(Request):
    """A request whose JSON has been read; FastAPI takes it from here."""

    def __init__(self, request: Request, document: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._document = document

    async def body(self) -> bytes:
        return b"{}"

    async def json(self) -> dict[str, Any]:
        return self._document


def json_route(max_body_bytes: int, body_timeout_s: float) -> type[APIRoute]:
    """A route class that reads and decodes the body before FastAPI looks at it."""

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def decode_and_handle(request: Request) -> Response:
                if request.method == "POST":
                    body = await read_body(request, max_body_bytes, body_timeout_s)
                    request = DecodedRequest(request, decode_object(body))
                return await handle(request)

            return decode_and_handle

    return JsonRoute


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Raises RequestError: 415 for other content, 413 for too much, 408 for too slow."""
    _check_headers(request, max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                pieces.append(piece)
    except TimeoutError:
        raise RequestError(
            f"The body did not arrive within {timeout_s:g} seconds.", status=408
        ) from None
    except ClientDisconnect:
        # Nobody reads the answer.
        raise RequestError("The client left before the body was complete.") from None
    return b"".join(pieces)


def decode_object(body: bytes) -> dict[str, Any]:
    """Raises RequestError for anything but one JSON object inside of the limits above."""
    if not body.strip():
        raise _invalid_json("it is empty")
    # Marks inside of text count, too: an upper bound that needs no decoding.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise RequestError(
            f"The body has more than {MAX_JSON_VALUES} values.",
            code="request_too_large",
            status=413,
        )
    try:
        document = msgspec.json.decode(body)
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise _invalid_json(_reason(error)) from None
    if not isinstance(document, dict):
        raise _invalid_json("it is not an object")
    _check_depth(document)
    return document


def _check_headers(request: Request, max_bytes: int) -> None:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    if header.get_content_type() != "application/json":
        raise RequestError(
            "The Content-Type has to be application/json.",
            code="unsupported_media_type",
            status=415,
        )
    if (header.get_content_charset() or "utf-8") not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(
            "The charset has to be utf-8.", code="unsupported_media_type", status=415
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            "The body is compressed; send it without Content-Encoding.",
            code="unsupported_media_type",
            status=415,
        )
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


def _check_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _invalid_json(f"it is nested deeper than {MAX_JSON_DEPTH} levels")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MAX_JSON_DEPTH} levels"
    return str(error)[:200]


def _invalid_json(reason: str) -> RequestError:
    return RequestError(f"The body is not a valid JSON request: {reason}", code="invalid_json")


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"The body is larger than {max_bytes} bytes.", code="request_too_large", status=413
    )
