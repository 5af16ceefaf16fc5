"""API keys guard every path but the two that only say whether the server is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_engine import says
from fake_server import FakeServer, chat_body, fake_server

from m2serve.server.app import PATHS

KEYS = ("first-key", "clé-ü")
OPEN = ("/health", "/ready")
GUARDED = [*sorted({*PATHS} - {*OPEN}), "/v1/models/m2", "/nope", "/docs", "/HEALTH"]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server(api_keys=KEYS) as running:
        running.engine.script = says("</think>Hi")
        yield running


def test_every_path_of_the_application_is_listed(server: FakeServer) -> None:
    """So that a new route cannot be forgotten here or in the metrics."""
    headers = {"Authorization": "Bearer first-key"}
    served = set(server.client.get("/openapi.json", headers=headers).json()["paths"])
    assert served - {"/v1/models/{model}"} == set(PATHS) - {"/openapi.json"}


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_no_key_no_answer(server: FakeServer, method: str, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"X-Api-Key": "first-ke"},
        {"X-Api-Key": ""},
        {"Authorization": "Bearer wrong", "X-Api-Key": "first-key"},
    ):
        response = server.client.request(method, path, headers=headers)
        assert response.status_code == 401, (path, headers)
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            error = response.json()["error"]
            assert error["type"] == "authentication_error"
            assert error["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", OPEN)
def test_open_paths_need_none(server: FakeServer, path: str) -> None:
    assert server.get(path).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_in_both_headers(server: FakeServer, key: str) -> None:
    for headers in (
        {"Authorization": b"Bearer " + key.encode()},
        {"Authorization": b"bearer  " + key.encode()},
        {"X-Api-Key": key.encode()},
    ):
        response = server.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
        assert response.status_code == 200, response.text


def test_several_keys_do_not_share_the_prefix_cache(server: FakeServer) -> None:
    for key in (*KEYS, KEYS[0]):
        headers = {"X-Api-Key": key.encode()}
        server.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
    first, second, again = (request.cache_salt for request in server.engine.requests[-3:])
    assert first == again
    assert first != second


def test_a_single_key_has_one_cache() -> None:
    with fake_server(api_keys=("k",)) as server:
        server.client.post("/v1/chat/completions", json=chat_body(), headers={"X-Api-Key": "k"})
        assert server.engine.requests[-1].cache_salt == b""
