"""Every error body the server sends is made here.

The body is OpenAI's: {"error": {"message", "type", "param", "code"}}. Only sentences written for
users are sent: those of RequestError and of this file. The text of any other exception stays in
the log, since it may hold paths, addresses or someone else's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from m2serve.errors import EngineDeadError, OverloadedError, RequestError

MAX_MESSAGE_CHARS = 2000
MAX_PARAM_CHARS = 200
MAX_REPORTED_ERRORS = 3
ENGINE_RETRY_AFTER_S = 5

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ENGINE_DEAD = "The engine is not ready, or stopped while it answered. Send the request again."
_BUG = "The server failed on this request. Its log has the details."

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    400: "The request cannot be served as it was sent; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "The model or the path does not exist.",
    405: "The path does not take this method.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests with this key.",
    431: "The header is too large.",
    500: "The server failed.",
    503: "Overloaded, starting or shutting down; see Retry-After.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route, for the OpenAPI page.

    "default" keeps FastAPI from announcing a 422, which is never sent.
    """
    content = {"application/json": {"schema": _ERROR_SCHEMA}}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": _STATUSES[status], "content": content} for status in statuses
    }
    return responses | {"default": {"description": "Any other error.", "content": content}}


POST_ERRORS = error_responses(400, 401, 404, 405, 408, 413, 415, 429, 431, 500, 503)
GET_ERRORS = error_responses(401, 404, 405, 431, 500, 503)


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class ServerClosingError(RequestError):
    """The server is going down; another one, or this one later, can answer."""

    def __init__(self, message: str = "The server is shutting down.") -> None:
        super().__init__(message, code="shutting_down", status=503)


class EngineRequestError(RequestError):
    """The engine gave up on one request; its sentence is written for users."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="engine_error", status=500)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> ErrorBody:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "..."
    param = None if param is None else _unicode(param[:MAX_PARAM_CHARS])
    return ErrorBody(ErrorDetail(_unicode(message), kind, param, code))


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = msgspec.json.encode(error_body(status, message, param, code))
    return Response(body, status, headers, media_type="application/json")


def describe(error: Exception) -> tuple[int, ErrorBody, dict[str, str]]:
    """Status, body and headers for any exception; an unknown one says nothing of itself."""
    if isinstance(error, RequestError):
        body = error_body(error.status, str(error), error.param, error.code)
        return error.status, body, _retry_headers(error)
    if isinstance(error, EngineDeadError):
        body = error_body(503, _ENGINE_DEAD, code="engine_not_ready")
        return 503, body, {"Retry-After": str(ENGINE_RETRY_AFTER_S)}
    if isinstance(error, RequestValidationError):
        message, param = _validation_message(error.errors())
        return 400, error_body(400, message, param), {}
    if isinstance(error, HTTPException):
        return error.status_code, _http_body(error), dict(error.headers or {})
    return 500, error_body(500, _BUG), {}


def response_for(error: Exception) -> Response:
    status, body, headers = describe(error)
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _unicode(text: str) -> str:
    """What an error quotes may hold half a surrogate pair, which JSON cannot."""
    return text.encode("utf-8", errors="replace").decode()


def _retry_headers(error: RequestError) -> dict[str, str]:
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(error.retry_after_s)}
    if error.status == 503:
        return {"Retry-After": str(ENGINE_RETRY_AFTER_S)}
    return {}


def _http_body(error: HTTPException) -> ErrorBody:
    messages = {
        404: ("This path does not exist; /openapi.json lists those that do.", "not_found"),
        405: ("This path does not take this method; the Allow header says which.", None),
    }
    message, code = messages.get(error.status_code, ("The request cannot be answered.", None))
    return error_body(error.status_code, message, code=code)


def _validation_message(errors: Sequence[Any]) -> tuple[str, str | None]:
    """A sentence about the first few errors, and the path of the first."""
    shown = [f"{_path(e['loc']) or 'the body'}: {e['msg']}" for e in errors[:MAX_REPORTED_ERRORS]]
    message = "; ".join(text[:300] for text in shown)
    if len(errors) > MAX_REPORTED_ERRORS:
        message += f"; and {len(errors) - MAX_REPORTED_ERRORS} more"
    return message, (_path(errors[0]["loc"]) or None) if errors else None


def _path(loc: Sequence[str | int]) -> str:
    """("body", "messages", 3, "role") -> "messages[3].role"."""
    path = ""
    for part in loc[1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:MAX_PARAM_CHARS]
