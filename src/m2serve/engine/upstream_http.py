"""One upstream's HTTP: JSON in, JSON objects out, errors told apart. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from m2serve.client import key_header
from m2serve.engine.upstream_connection import BrokenConnectionError, base_url, exchange
from m2serve.engine.upstream_dialect import (
    MAX_MESSAGE_CHARS,
    UpstreamBusyError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    refused,
)
from m2serve.errors import M2Error

MAX_EVENT_BYTES = 64 * 1024 * 1024


class UpstreamHttp:
    """One engine's paths. An answer may take as long as it likes; whoever waits looks at the
    engine's health meanwhile. Proxies of the environment are not used: an engine is one's own.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        """Raises UsageError for what is no URL or no key."""
        self._url = base_url(url)
        self._headers = key_header(api_key)

    @property
    def url(self) -> str:
        return self._url.text

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body; raises UpstreamError when there is no answer in time."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                exchange(self._url, "GET", path, self._headers) as answer,
            ):
                return answer.status, await answer.read()
        except TimeoutError as error:
            sentence = f"{self.url} did not answer within {timeout_s:g} s"
            raise UpstreamTimeoutError(sentence) from error
        except BrokenConnectionError as error:
            raise self._unreachable(error) from error

    async def get_json(self, path: str, timeout_s: float) -> dict[str, Any]:
        """Raises UpstreamError, UpstreamRefusedError for 401 and 403."""
        status, content = await self.get(path, timeout_s)
        if status != 200:
            raise self._error_of(status, content, path)
        return _json_object(content)

    async def post(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of an answer: the events of a stream, or its one object.

        Leaving the iterator closes the connection, which is how the upstream learns of an abort.
        Raises UpstreamError, UpstreamBusyError, UpstreamRefusedError, RequestError.
        """
        content = msgspec.json.encode(body)
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            async with exchange(self._url, "POST", path, headers, content) as answer:
                if answer.status != 200:
                    raise self._error_of(answer.status, await answer.read(), path)
                if not body["stream"]:
                    yield _json_object(await answer.read())
                    return
                async for event in _events(answer.pieces()):
                    yield _json_object(event)
        except BrokenConnectionError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BrokenConnectionError) -> UpstreamError:
        return UpstreamError(f"no answer from {self.url}: {error}")

    def _error_of(self, status: int, content: bytes, path: str) -> M2Error:
        message, code = _message(content)
        if status in (401, 403):
            return UpstreamRefusedError(
                f"{self.url} answers {status}: {message} (is --upstream-api-key right?)"
            )
        if status == 429 or code == "overloaded":
            return UpstreamBusyError(f"{self.url}{path} answers {status}: {message}")
        if status in (404, 405, 408) or status >= 500 or status < 400:
            return UpstreamError(f"{self.url}{path} answers {status}: {message}")
        return refused(message, status)


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event up to [DONE]; comments and other fields are skipped."""
    buffer = b""
    async for piece in pieces:
        *lines, buffer = (buffer + piece).split(b"\n")
        if len(buffer) > MAX_EVENT_BYTES:
            raise UpstreamError(f"an event of the upstream is longer than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield data


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError(f"the upstream sent what is no JSON object: {error}") from error


def _message(content: bytes) -> tuple[str, object]:
    """The sentence and the code in an error body of OpenAI's, FastAPI's or no known form."""
    try:
        body = _json_object(content)
    except UpstreamError:
        return content.decode(errors="replace")[:MAX_MESSAGE_CHARS] or "no text", None
    error = body.get("error", body)
    if not isinstance(error, dict):
        return str(error)[:MAX_MESSAGE_CHARS], None
    message = error.get("message", error.get("detail", error))
    return str(message)[:MAX_MESSAGE_CHARS], error.get("code")
