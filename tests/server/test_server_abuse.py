"""What a hostile or broken client may send: a 4xx with OpenAI's body, and the server goes on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import MAX_MODEL_LEN, VOCAB_SIZE, says
from fake_server import MODEL, FakeServer, chat_body, fake_server

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        running.engine.script = says("Hi</think>Hello")
        yield running


@pytest.fixture(autouse=True)
def _still_serves(server: FakeServer) -> Iterator[None]:
    """Nothing got through to the engine, and the next request is answered."""
    before = len(server.engine.requests)
    yield
    assert len(server.engine.requests) == before
    assert server.chat().status_code == 200
    assert not server.engine.active


def assert_error(response: Any, status: int, **expected: Any) -> dict[str, Any]:
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 4096
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"]
    for name, value in expected.items():
        assert error[name] == value, error
    return error


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    base = chat_body() if path == CHAT else {"model": MODEL, "prompt": "The sky"}
    return {**base, **fields}


def nested(depth: int) -> bytes:
    return b'{"messages":' + b"[" * depth + b"]" * depth + b"}"


RAW_BODIES = {
    "empty": b"",
    "blank": b"  \n",
    "number": b"5",
    "string": b'"hello"',
    "null": b"null",
    "array": b"[]",
    "half": b'{"messages": [',
    "trailing": b"{} {}",
    "nan": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "overflowing float": b'{"temperature": 1e999}',
    "endless integer": b'{"max_tokens": ' + b"9" * 100_000 + b"}",
    "lone high surrogate": rb'{"messages": [{"role": "user", "content": "\ud800 "}]}',
    "lone low surrogate": rb'{"messages": [{"role": "user", "content": "\udc00 "}]}',
    "invalid utf-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "utf-16": '{"messages": []}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"messages": []}',
    "single quotes": b"{'messages': []}",
    "deep": nested(200),
    "very deep": nested(100_000),
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
@pytest.mark.parametrize("name", RAW_BODIES)
def test_bodies_that_are_no_json_object(server: FakeServer, path: str, name: str) -> None:
    response = server.client.post(
        path, content=RAW_BODIES[name], headers={"Content-Type": "application/json"}
    )
    assert_error(response, 400, type="invalid_request_error", code="invalid_json")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "a/b/c"])
def test_other_content_types(server: FakeServer, kind: str) -> None:
    content = json.dumps(chat_body()).encode()
    response = server.client.post(CHAT, content=content, headers={"Content-Type": kind})
    assert_error(response, 415, code="unsupported_media_type")


def test_other_charsets_and_encodings(server: FakeServer) -> None:
    content = json.dumps(chat_body()).encode()
    headers = {"Content-Type": "application/json; charset=latin-1"}
    assert_error(server.client.post(CHAT, content=content, headers=headers), 415)
    bomb = gzip.compress(b" " * (64 * MIB), 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert_error(server.client.post(CHAT, content=bomb, headers=headers), 415)


def test_json_with_a_charset_and_duplicate_keys(server: FakeServer) -> None:
    """The last of two equal keys counts."""
    content = json.dumps(chat_body()).encode()[:-1] + b', "n": 99, "model": "x"}'
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    assert_error(server.client.post(CHAT, content=content, headers=headers), 404, param="model")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_body_too_large(server: FakeServer, path: str) -> None:
    content = b'{"prompt": "' + b"a" * (33 * MIB) + b'"}'
    headers = {"Content-Type": "application/json"}
    response = server.client.post(path, content=content, headers=headers)
    assert_error(response, 413, code="request_too_large")


def test_a_chunked_body_too_large(server: FakeServer) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * MIB

    headers = {"Content-Type": "application/json"}
    response = server.client.post(CHAT, content=pieces(), headers=headers)
    assert_error(response, 413, code="request_too_large")


INTEGERS = (
    "n",
    "max_tokens",
    "min_tokens",
    "top_k",
    "seed",
    "prompt_logprobs",
)
FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("value", [-(2**70), -(2**63) - 1, -7, 2**63, 10**30])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_out_of_range(server: FakeServer, path: str, name: str, value: int) -> None:
    if name == "seed" and value == -7:
        value = -(2**64)
    if name == "top_k" and value > 0:
        value = -2  # any larger number is no limit
    error = assert_error(server.post(path, body_of(path, **{name: value})), 400)
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("value", [-1e308, -3, 1e308])
@pytest.mark.parametrize("name", FLOATS)
def test_floats_out_of_range(server: FakeServer, path: str, name: str, value: float) -> None:
    if (name, value) == ("temperature", 1e308):
        value = -1e-9
    assert_error(server.post(path, body_of(path, **{name: value})), 400, param=name)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS, "stream", "model", "ignore_eos"])
@pytest.mark.parametrize("value", ["1", [], {}, [1]])
def test_fields_of_the_wrong_type(server: FakeServer, path: str, name: str, value: Any) -> None:
    if name == "model" and isinstance(value, str):
        value = 5
    error = assert_error(server.post(path, body_of(path, **{name: value})), 400)
    assert error["param"] == name


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 17}, "n"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"stop": ["x"] * 100_000}, "stop"),
    ({"stop": "x" * MIB}, "stop[0]"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a", 5]}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ({"stop_token_ids": [2**40], "min_tokens": 3}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 10_000}, "stop_token_ids"),
    ({"stop_token_ids": ["a"] * 10_000}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1.5]}, "stop_token_ids[0]"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids"),
    ({"allowed_token_ids": [VOCAB_SIZE - 1]}, "allowed_token_ids"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias"),
    ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias[1]"),
    ({"logit_bias": {"1": "a"}}, "logit_bias"),
    ({"logit_bias": {str(i): "a" for i in range(50_000)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"bad_words": ["x" * 100_000]}, "bad_words[0]"),
    ({"bad_words": ["x"] * 10_000}, "bad_words"),
    ({"bad_words": [5]}, "bad_words[0]"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 1025}, "cache_salt"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"request_id": "x" * 129}, "request_id"),
    ({"request_id": "a\nb"}, "request_id"),
    ({"request_id": ""}, "request_id"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": "text"}, "response_format"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"response_format": {"type": ["json_object"]}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"response_format": {"type": "json_object"}, "min_tokens": 2}, "min_tokens"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"guided_json": []}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": {"$ref": "http://127.0.0.1/"}}, "guided_json"),
    ({"guided_json": {"type": "integer", "multipleOf": 999_983}}, "guided_json"),
    ({"guided_json": {"enum": ["x" * 70_000]}}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": "(" * 30_000}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": [1]}, "guided_choice[0]"),
    ({"guided_grammar": "start: " + "(" * 10_000}, "guided_grammar"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
    (
        {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
    ),
    ({"best_of": 2}, "best_of"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"priority": 1}, "priority"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"temprature": 0.5}, "temprature"),
    ({"x" * 100_000: 1}, "x" * 80),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_bad_fields_are_named(
    server: FakeServer, path: str, fields: dict[str, Any], param: str
) -> None:
    assert_error(server.post(path, body_of(path, **fields)), 400, param=param)


USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def calling(**function: Any) -> list[dict[str, Any]]:
    call = {**CALL, "function": {"name": "f", "arguments": "{}", **function}}
    return [USER, {"role": "assistant", "tool_calls": [call]}, TOOL]


TOOL = {"role": "tool", "tool_call_id": "c1", "content": "x"}


def part(kind: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, **more}]}]


BAD_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [USER] * 20_000}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "wizard" * 1000, "content": "Hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [USER, TOOL]}, "messages[1]"),
    ({"messages": [USER, *calling()[1:], TOOL]}, "messages[3]"),
    ({"messages": calling(arguments="{not json")}, "messages[1].tool_calls[0].function.arguments"),
    ({"messages": calling(arguments="[]")}, "messages[1].tool_calls[0].function.arguments"),
    ({"messages": calling(arguments='{"a": NaN}')}, "messages[1].tool_calls[0].function.arguments"),
    ({"messages": calling(arguments=r'{"a": "\ud800"}')}, None),
    (
        {"messages": calling(arguments="[" * 100_000)},
        "messages[1].tool_calls[0].function.arguments",
    ),
    ({"messages": calling(name="")}, "messages[1].tool_calls[0].function.name"),
    (
        {"messages": part("image_url", image_url={"url": "https://x/y.png"})},
        "messages[0].content[0]",
    ),
    (
        {"messages": part("image_url", image_url={"url": "file:///etc/passwd"})},
        "messages[0].content[0]",
    ),
    (
        {"messages": part("input_audio", input_audio={"data": "", "format": "wav"})},
        "messages[0].content[0]",
    ),
    (
        {"messages": part("video_url", video_url={"url": "data:video/mp4;base64,"})},
        "messages[0].content[0]",
    ),
    ({"messages": part("file", file={"file_id": "x"})}, "messages[0].content[0]"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": 'a"><b'}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2000}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
    ({"reasoning_effort": "none"}, "reasoning_effort"),
    ({"thinking": {"type": "disabled"}}, "thinking"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"echo": True}, "echo"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=lambda value: str(value)[:60])
def test_bad_chats_are_named(server: FakeServer, fields: dict[str, Any], param: str | None) -> None:
    assert_error(server.chat(**fields), 400, param=param)


BAD_PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": ["a"] * 100_000}, "prompt"),
    ({"prompt": ["a"] * 33, "n": 2}, "n"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1, 2.5]}, "prompt"),
    ({"prompt": [True, False]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [VOCAB_SIZE]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "x"}, "suffix"),
    ({"messages": [USER]}, "messages"),
    ({"prompt_embeds": "x"}, "prompt_embeds"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_PROMPTS, ids=lambda value: str(value)[:60])
def test_bad_completions_are_named(server: FakeServer, fields: dict[str, Any], param: str) -> None:
    assert_error(server.complete(**fields), 400, param=param)


def test_a_prompt_longer_than_the_context(server: FakeServer) -> None:
    for response in (
        server.complete(prompt=[7] * (MAX_MODEL_LEN + 5)),
        server.complete(prompt=[7] * (MAX_MODEL_LEN - 5), max_tokens=10),
        server.complete(max_tokens=10**30),
        server.chat(messages=[{"role": "user", "content": "a b " * 20_000}]),
    ):
        error = assert_error(response, 400, code="context_length_exceeded")
        assert str(MAX_MODEL_LEN) in error["message"]
    first = server.complete(prompt=[7] * (MAX_MODEL_LEN + 5)).json()["error"]
    assert str(MAX_MODEL_LEN + 5) in first["message"]


@pytest.mark.parametrize("model", ["gpt-4", "", "../../etc/passwd", "x" * 100_000, "m2\x00"])
def test_unknown_models(server: FakeServer, model: str) -> None:
    for response in (server.chat(model=model), server.complete(model=model)):
        error = assert_error(response, 404, code="model_not_found", param="model")
        assert MODEL in error["message"]


def test_deep_and_looping_schemas_are_only_text(server: FakeServer) -> None:
    """Up to the limits they are shown to the model; nothing resolves a reference."""
    tool = b'{"type": "function", "function": {"name": "f", "parameters": %s}}'
    deep = tool % (b'{"properties":' * 2000 + b"{}" + b"}" * 2000)
    content = json.dumps(chat_body()).encode()[:-1] + b', "tools": [' + deep + b"]}"
    headers = {"Content-Type": "application/json"}
    assert_error(server.client.post(CHAT, content=content, headers=headers), 400)
    for schema in (b'{"$ref": "#"}', b'{"$ref": "http://127.0.0.1:1/x"}', b'{"pattern": "(a+)+b"}'):
        tools = [json.loads(tool % schema)]
        assert server.post("/tokenize", {"messages": [USER], "tools": tools}).status_code == 200


def test_many_errors_make_a_short_answer(server: FakeServer) -> None:
    fields = dict.fromkeys((*INTEGERS, *FLOATS), "x" * 1000)
    error = assert_error(server.chat(**fields), 400)
    assert "more" in error["message"]
    assert "xxx" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/chat", 404),
        ("GET", "/docs", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/health/", 404),
        ("GET", CHAT, 405),
        ("PUT", CHAT, 405),
        ("DELETE", "/v1/models/m2", 405),
        ("POST", "/health", 405),
        ("OPTIONS", CHAT, 405),
    ],
)
def test_paths_and_methods_that_do_not_exist(
    server: FakeServer, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert_error(response, status, type=kind)
    if status == 405:
        assert response.headers["allow"]
