"""Talk to any OpenAI-compatible endpoint and know when every piece arrived. No torch.

async with Endpoint("http://127.0.0.1:8000") as endpoint:
    async for chunk in endpoint.stream("/v1/chat/completions", body):
        print(chunk.time_s, chunk.data)
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx2

from m2serve.errors import M2Error, UsageError

MAX_EVENT_BYTES = 16 * 1024 * 1024
_ERROR_BODY_CHARS = 500


class EndpointError(M2Error):
    """The endpoint cannot be reached, or answered with an error; the sentence says which.

    `status` is that of the answer, None without one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


# What httpx2 raises before and while it asks: also for a port or host that cannot be, for a number
# JSON does not have, and from its connection attempts as a group.
REQUEST_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    ValueError,
    OverflowError,
    ExceptionGroup,
)


@dataclass(frozen=True)
class TimedChunk:
    """One server-sent event: its JSON, and time.perf_counter() when its last byte was read."""

    time_s: float
    data: dict[str, Any]


class Endpoint:
    """One base URL with one connection pool; use it as an async context manager."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout_s: float = 600.0
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        timeout = httpx2.Timeout(timeout_s, connect=10.0)
        self.http = httpx2.AsyncClient(headers=key_header(api_key), timeout=timeout)

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.http.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """GET a JSON object; raises EndpointError."""
        try:
            response = await self.http.get(self.base_url + path)
        except REQUEST_ERRORS as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._refused(path, response.status_code, response.content)
        return _json_object(response.content, self.base_url + path)

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[TimedChunk]:
        """POST and yield each event until [DONE]; raises EndpointError, also for error events."""
        try:
            async with self.http.stream("POST", self.base_url + path, json=body) as response:
                if response.status_code != 200:
                    raise self._refused(path, response.status_code, await response.aread())
                async for payload in _sse_payloads(response.aiter_bytes()):
                    now = time.perf_counter()
                    if payload == b"[DONE]":
                        return
                    data = _json_object(payload, self.base_url + path)
                    if "error" in data:
                        raise EndpointError(f"{self.base_url} broke off: {_error_text(data)}")
                    yield TimedChunk(now, data)
        except REQUEST_ERRORS as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> EndpointError:
        reason = str(error) or type(error).__name__
        return EndpointError(f"no answer from {self.base_url}: {reason}")

    def _refused(self, path: str, status: int, content: bytes) -> EndpointError:
        try:
            text = _error_text(_json_object(content, path))
        except EndpointError:
            text = content.decode(errors="replace")[:_ERROR_BODY_CHARS]
        return EndpointError(f"{self.base_url}{path} answered {status}: {text}", status)


def key_header(api_key: str | None) -> dict[str, str]:
    """The header that carries the key; raises UsageError for one that no header may hold."""
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise UsageError("the API key holds characters that no HTTP header may hold")
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


# What a server sends need not be what the protocol says.


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


async def _sse_payloads(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event; comment lines (keep-alives) and other fields are skipped."""
    buffer = b""
    async for piece in pieces:
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) > MAX_EVENT_BYTES:
            raise EndpointError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _json_object(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"{where} sent something that is not JSON") from error
    if not isinstance(value, dict):
        raise EndpointError(f"{where} sent a JSON {type(value).__name__}, not an object")
    return value


def _error_text(body: dict[str, Any]) -> str:
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:_ERROR_BODY_CHARS]
