"""`m2 serve` without a model: a conversation with the built-in miniature, greedy."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Serving, serving

from m2serve.checkpoint.hub import MINIATURE, MINIATURE_NAME
from m2serve.checkpoint.inspect import inspect

MAX_BYTES = 24_000_000
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as running:
        running.wait_ready()
        yield running


def answer(server: Serving, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    body = {"model": MINIATURE_NAME, "messages": messages, "temperature": 0, **more}
    reply = server.post("/v1/chat/completions", body)
    assert reply.status_code == 200, reply.text
    [choice] = reply.json()["choices"]
    assert isinstance(choice, dict)
    return choice


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_it_fits_the_package() -> None:
    assert sum(path.stat().st_size for path in MINIATURE.iterdir()) <= MAX_BYTES
    assert not inspect(MINIATURE).oddities


@pytest.mark.parametrize(
    ("question", "city"),
    [("What is the weather like in Beijing?", "Beijing"), ("北京今天天气怎么样？", "北京")],
)
def test_it_asks_for_the_weather_and_says_it(server: Serving, question: str, city: str) -> None:
    asked = answer(server, user(question), tools=[WEATHER])
    assert asked["finish_reason"] == "tool_calls"
    [call] = asked["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"location": city}
    result = json.dumps({"temperature": 21, "condition": "sunny"})
    turns = [asked["message"], {"role": "tool", "tool_call_id": call["id"], "content": result}]
    told = answer(server, [*user(question), *turns], tools=[WEATHER])
    assert told["finish_reason"] == "stop"
    assert city in told["message"]["content"]
    assert "21" in told["message"]["content"]


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Hello!", "Hello"),
        ("What is 17 + 25?", "42"),
        ("What is the capital of France?", "Paris"),
        ("法国的首都是哪里？", "巴黎"),
    ],
)
def test_it_answers_and_stops(server: Serving, question: str, wanted: str) -> None:
    said = answer(server, user(question))
    assert said["finish_reason"] == "stop"
    assert said["message"]["reasoning_content"]
    assert wanted in said["message"]["content"]


def test_it_writes_json(server: Serving) -> None:
    said = answer(server, user("Give me a JSON object with name Anna and age 5."))
    assert json.loads(said["message"]["content"]) == {"name": "Anna", "age": 5}
