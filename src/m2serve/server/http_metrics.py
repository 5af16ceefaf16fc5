"""Counts every HTTP request, whatever answered it, with labels no client can choose."""

from __future__ import annotations

import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2serve.server.metrics import Metrics

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_OTHER = "other"
_MODEL_PATH = "/v1/models/"


class HttpMetrics:
    """ASGI middleware; `paths` are the handlers that get a series of their own."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Iterable[str]) -> None:
        self.app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = "5xx"  # when the application raises before it answers

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = f"{message['status'] // 100}xx"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            duration_s = time.perf_counter() - started_s
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            self._metrics.record_http(self._handler(scope["path"]), method, status, duration_s)

    def _handler(self, path: str) -> str:
        if path in self._paths:
            return path
        return _MODEL_PATH + "{model}" if path.startswith(_MODEL_PATH) else _OTHER
