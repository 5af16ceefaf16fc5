"""`m2 serve` without a model: a conversation with the built-in miniature, greedy and sampled."""

import json
from collections.abc import Callable, Iterator
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


# Of the Ascend guide, word for word.
PUBLISHED_QUESTION = "请查询上海的天气。"
PUBLISHED_TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get weather by city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
M2_SAMPLING = {"temperature": 1.0, "top_p": 0.95, "top_k": 40}
NUM_SEEDS = 10


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


def arguments_of(choice: dict[str, Any]) -> tuple[str, Any]:
    [call] = choice["message"]["tool_calls"]
    return call["function"]["name"], json.loads(call["function"]["arguments"])


@pytest.mark.parametrize(
    ("question", "city"),
    [("What is the weather like in Beijing?", "Beijing"), ("北京今天天气怎么样？", "北京")],
)
def test_it_asks_for_the_weather_and_says_it(server: Serving, question: str, city: str) -> None:
    asked = answer(server, user(question), tools=[WEATHER])
    assert asked["finish_reason"] == "tool_calls"
    assert arguments_of(asked) == ("get_weather", {"location": city})
    told = answer(server, [*user(question), *with_result(asked)], tools=[WEATHER])
    assert told["finish_reason"] == "stop"
    assert city in told["message"]["content"]
    assert "21" in told["message"]["content"]


def with_result(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The turn that asked for the weather, and what the tool said."""
    [call] = asked["message"]["tool_calls"]
    result = json.dumps({"temperature": 21, "condition": "sunny"})
    return [asked["message"], {"role": "tool", "tool_call_id": call["id"], "content": result}]


def test_the_published_request(server: Serving) -> None:
    asked = answer(server, user(PUBLISHED_QUESTION), tools=[PUBLISHED_TOOL])
    name, arguments = arguments_of(asked)
    assert name == "get_current_weather"
    assert arguments["city"] == "上海"
    turns = [*user(PUBLISHED_QUESTION), *with_result(asked)]
    told = answer(server, turns, tools=[PUBLISHED_TOOL])
    assert "上海" in told["message"]["content"]
    assert "21" in told["message"]["content"]


def is_call(name: str, wanted: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """One call of this tool, with these arguments or more."""

    def check(choice: dict[str, Any]) -> bool:
        calls = choice["message"].get("tool_calls") or []
        if len(calls) != 1 or calls[0]["function"]["name"] != name:
            return False
        return wanted.items() <= json.loads(calls[0]["function"]["arguments"]).items()

    return check


def says(*wanted: str) -> Callable[[dict[str, Any]], bool]:
    return lambda choice: all(text in (choice["message"]["content"] or "") for text in wanted)


def is_object(wanted: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    def check(choice: dict[str, Any]) -> bool:
        try:
            return bool(json.loads(choice["message"]["content"]) == wanted)
        except (TypeError, ValueError):
            return False

    return check


@pytest.mark.parametrize(
    ("messages", "tools", "is_right"),
    [
        (
            user("What is the weather like in Beijing?"),
            [WEATHER],
            is_call("get_weather", {"location": "Beijing"}),
        ),
        (user("北京今天天气怎么样？"), [WEATHER], is_call("get_weather", {"location": "北京"})),
        (
            user(PUBLISHED_QUESTION),
            [PUBLISHED_TOOL],
            is_call("get_current_weather", {"city": "上海"}),
        ),
        (user("Hello!"), [], says("Hello")),
        (user("What is 17 + 25?"), [], says("42")),
        (user("What is the capital of France?"), [], says("Paris")),
        (
            user("Give me a JSON object with name Anna and age 5."),
            [],
            is_object({"name": "Anna", "age": 5}),
        ),
    ],
)
def test_at_the_models_own_sampling_settings(
    server: Serving,
    messages: list[dict[str, Any]],
    tools: list[Any],
    is_right: Callable[[dict[str, Any]], bool],
) -> None:
    answers = [
        answer(server, messages, tools=tools, seed=seed, **M2_SAMPLING) for seed in range(NUM_SEEDS)
    ]
    assert sum(map(is_right, answers)) >= 0.7 * NUM_SEEDS


@pytest.mark.parametrize(
    ("question", "tool", "city"),
    [
        ("What is the weather like in Beijing?", WEATHER, "Beijing"),
        ("北京今天天气怎么样？", WEATHER, "北京"),
        (PUBLISHED_QUESTION, PUBLISHED_TOOL, "上海"),
    ],
)
def test_what_it_makes_of_a_result_at_those_settings(
    server: Serving, question: str, tool: dict[str, Any], city: str
) -> None:
    asked = answer(server, user(question), tools=[tool])
    turns = [*user(question), *with_result(asked)]
    answers = [
        answer(server, turns, tools=[tool], seed=seed, **M2_SAMPLING) for seed in range(NUM_SEEDS)
    ]
    assert sum(map(says(city, "21"), answers)) >= 0.7 * NUM_SEEDS


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
