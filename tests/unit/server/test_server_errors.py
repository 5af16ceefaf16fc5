import json

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from m2serve.errors import CheckpointError, EngineDeadError, OverloadedError, RequestError
from m2serve.server.errors import EngineRequestError, ServerClosingError, response_for

CASES = [
    (RequestError("x", param="n", code="c"), 400, "invalid_request_error"),
    (RequestError("x", status=401), 401, "authentication_error"),
    (RequestError("x", status=403), 403, "permission_error"),
    (RequestError("x", status=404), 404, "not_found_error"),
    (RequestError("x", status=413), 413, "invalid_request_error"),
    (RequestError("x", status=429), 429, "rate_limit_error"),
    (OverloadedError("x", retry_after_s=3), 503, "server_error"),
    (ServerClosingError(), 503, "server_error"),
    (EngineRequestError("x"), 500, "server_error"),
    (EngineDeadError("secret"), 503, "server_error"),
    (HTTPException(405, headers={"Allow": "GET"}), 405, "invalid_request_error"),
    (HTTPException(418, "secret"), 418, "invalid_request_error"),
    (CheckpointError("secret"), 500, "server_error"),
    (RuntimeError("secret"), 500, "server_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), CASES, ids=lambda v: repr(v)[:40])
def test_every_exception_has_openais_body(error: Exception, status: int, kind: str) -> None:
    response = response_for(error)
    assert response.status_code == status
    assert response.media_type == "application/json"
    assert b"secret" not in response.body
    body = json.loads(response.body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == kind
    assert ("retry-after" in response.headers) == (status == 503)


def test_retry_after_and_allow_are_passed_on() -> None:
    assert response_for(CASES[6][0]).headers["retry-after"] == "3"
    assert response_for(CASES[10][0]).headers["allow"] == "GET"


@given(st.text(alphabet=st.characters(), max_size=5000))
def test_any_message_makes_a_short_valid_body(text: str) -> None:
    body = json.loads(response_for(RequestError(text, param=text)).body)["error"]
    assert len(body["message"]) <= 2003
    assert len(body["param"]) <= 200


def test_validation_errors_are_paths_and_sentences() -> None:
    errors = [
        {"loc": ("body", "messages", 3, "role"), "msg": "Field required", "input": "secret"},
        *({"loc": ("body", "x" * 5000), "msg": "y" * 5000, "input": "secret"} for _ in range(9)),
    ]
    body = json.loads(response_for(RequestValidationError(errors)).body)["error"]
    assert body["param"] == "messages[3].role"
    assert body["message"].startswith("messages[3].role: Field required; ")
    assert body["message"].endswith("and 7 more")
    assert len(body["message"]) < 1000
    assert "secret" not in body["message"]
