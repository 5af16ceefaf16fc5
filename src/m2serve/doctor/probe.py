"""Requests to an endpoint that come back as values, errors too. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from m2serve.client import REQUEST_ERRORS, Endpoint, EndpointError, as_object
from m2serve.doctor.answer import Answer, StreamedAnswer, whole_answer
from m2serve.doctor.result import shown

MAX_BODY_BYTES = 16 * 1024 * 1024
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """`status` 0: no answer; `text` is then the reason."""

    status: int
    text: str

    @property
    def data(self) -> dict[str, Any]:
        """The JSON object in it, or an empty one."""
        try:
            value = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return as_object(value)

    @property
    def error(self) -> str:
        """What the endpoint says went wrong, bounded."""
        error = self.data.get("error", self.data)
        message = error.get("message") if isinstance(error, dict) else error
        return shown(str(message or self.text))


class Probe:
    """One endpoint, one model; use it as an async context manager."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout_s: float = 180.0
    ) -> None:
        self._endpoint = Endpoint(base_url, api_key=api_key, timeout_s=timeout_s)
        self.base_url = self._endpoint.base_url

    async def __aenter__(self) -> Probe:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._endpoint.__aexit__(kind, error, traceback)

    async def get(self, path: str) -> Reply:
        return await self._request("GET", path, None)

    async def chat(self, body: Mapping[str, Any]) -> Answer:
        """One whole answer."""
        start = time.perf_counter()
        reply = await self._request("POST", CHAT, body)
        if reply.status != 200:
            return Answer(reply.status, reply.error)
        return whole_answer(reply.data, time.perf_counter() - start)

    async def stream(self, body: Mapping[str, Any], max_chunks: int = 1_000_000) -> Answer:
        """One streamed answer; after `max_chunks` pieces of text it is cancelled."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answer = StreamedAnswer(time.perf_counter())
        chunks = self._endpoint.stream(CHAT, asked)
        try:
            async for chunk in chunks:
                answer.add(chunk.data, chunk.time_s)
                max_chunks -= 1
                if not max_chunks:
                    break
        except EndpointError as error:
            return _refusal(str(error))
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
        return answer.finish()

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Reply:
        try:
            url = self.base_url + path
            async with self._endpoint.http.stream(method, url, json=body) as response:
                content = b""
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_BODY_BYTES:
                        return Reply(0, f"an answer is longer than {MAX_BODY_BYTES} bytes")
                return Reply(response.status_code, content.decode(errors="replace"))
        except REQUEST_ERRORS as error:
            return Reply(0, str(error) or type(error).__name__)


def _refusal(sentence: str) -> Answer:
    """From an EndpointError ("URL answered 500: why"); status 0 when it names none."""
    _, _, rest = sentence.partition(" answered ")
    status, _, why = rest.partition(": ")
    if not status.isdecimal() or len(status) != 3:
        return Answer(0, shown(sentence))
    return Answer(int(status), shown(why))
