"""API keys: on every path but the two that only say whether the server is there."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from m2serve.server.errors import error_response

OPEN_PATHS = frozenset({"/health", "/ready"})


class ApiKeyAuth:
    """ASGI middleware; without keys everything is open.

    A key comes as `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Its SHA-256 is put into the
    request's state as `api_key_digest`.
    """

    def __init__(self, app: ASGIApp, api_keys: Iterable[str]) -> None:
        self.app = app
        self._digests = [sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._digests or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        key = _sent_key(Headers(scope=scope))
        digest = sha256(key.encode("latin-1")).digest()
        if self._is_known(digest):
            scope.setdefault("state", {})["api_key_digest"] = digest
            await self.app(scope, receive, send)
            return
        message = "The API key is wrong." if key else "No API key was sent."
        response = error_response(
            401,
            f"{message} Send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_known(self, digest: bytes) -> bool:
        """Compares with every key, so the time does not tell which one came close."""
        known = False
        for ours in self._digests:
            known |= compare_digest(ours, digest)
        return known


def _sent_key(headers: Headers) -> str:
    """The key as latin-1 text, as headers are; "" when there is none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key", "").strip()
