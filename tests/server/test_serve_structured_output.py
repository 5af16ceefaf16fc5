"""`m2 serve` holds a random model to a form: whatever the weights say, the answer is valid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from serving import Serving, serving
from tiny import build_tiny

from m2serve.chat.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Berlin"]},
        "sunny": {"type": "boolean"},
        "wind": {"anyOf": [{"const": 3}, {"type": "null"}]},
    },
    "required": ["city", "sunny", "wind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
QUESTION = [{"role": "user", "content": "Weather?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with serving(str(folder), "--served-model-name", "m") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


@pytest.fixture(scope="module")
def ends_thinking(folder: Path) -> dict[str, int]:
    """A random model would think for ever."""
    return {str(Tokenizer.load(folder).control.think_end): 100}


def test_an_answer_has_the_form_streamed_or_not(
    client: OpenAI, ends_thinking: dict[str, int]
) -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "messages": QUESTION,
        "response_format": FORMAT,
        "logit_bias": ends_thinking,
        "max_tokens": 80,
        "seed": 5,
    }
    answer = client.chat.completions.create(**fields, n=3)
    contents = [choice.message.content or "" for choice in answer.choices]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    for content in contents:
        value = json.loads(content)
        assert list(value) == ["city", "sunny", "wind"]
        assert value["city"] in ("Paris", "Berlin")
        assert (type(value["sunny"]), value["wind"] in (3, None)) == (bool, True)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == contents[0]


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "report",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["Paris", "Berlin"]},
                    "sunny": {"type": "boolean"},
                    "wind": {"type": "integer", "minimum": 0, "maximum": 9},
                },
                "required": ["city", "sunny", "wind"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop_here"}},
]


def test_a_forced_call_fits_its_schema_whatever_the_weights_say(
    client: OpenAI, ends_thinking: dict[str, int]
) -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "messages": QUESTION,
        "tools": TOOLS,
        "logit_bias": ends_thinking,
        "max_tokens": 200,
        "seed": 3,
    }
    named = {"type": "function", "function": {"name": "report"}}
    answer = client.chat.completions.create(**fields, tool_choice=named, n=3)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        value = json.loads(call.function.arguments)
        assert call.function.name == "report"
        assert value["city"] in ("Paris", "Berlin")
        assert type(value["sunny"]) is bool
        assert 0 <= value["wind"] <= 9
    answer = client.chat.completions.create(
        **fields, tool_choice="required", parallel_tool_calls=False, n=3
    )
    for choice in answer.choices:
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name in ("report", "stop_here")


def test_completions_of_every_kind_at_the_same_time(client: OpenAI) -> None:
    forms: list[dict[str, Any]] = [
        {"structured_outputs": {"choice": ["left", "right"]}},
        {"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2}"}},
        {"structured_outputs": {"grammar": 'root ::= "x" | "(" root ")"'}},
        {"response_format": FORMAT},
        {},
    ]

    def ask(fields: dict[str, Any]) -> str:
        answer = client.completions.create(
            model="m", prompt="Say", max_tokens=100, temperature=0.7, extra_body=fields
        )
        return answer.choices[0].text

    with ThreadPoolExecutor(len(forms)) as pool:
        choice, regex, nested, weather, _ = pool.map(ask, forms)
    assert choice in ("left", "right")
    assert (len(regex), regex[3], regex[4:].isdigit()) == (6, "-", True)
    depth = nested.count("(")
    assert nested.startswith("(" * depth + "x") or len(nested) >= 100
    assert set(json.loads(weather)) == {"city", "sunny", "wind"}


def test_an_answer_that_is_cut_says_so(client: OpenAI, ends_thinking: dict[str, int]) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=QUESTION,  # type: ignore[arg-type]
        response_format=FORMAT,  # type: ignore[arg-type]
        logit_bias=ends_thinking,
        max_tokens=5,
    )
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").startswith("{")
