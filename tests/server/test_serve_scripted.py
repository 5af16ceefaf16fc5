"""The official client against forced answers that run through the real engine and parser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from serving import Serving, serving
from tiny import build_tiny
from tool_calls import CALLS, TOOLS

ANSWER = "The results are in.\n</think>\n\nShanghai will be sunny."
SCRIPT = [
    {"match": "weather", "completion": CALLS, "after_tool": False},
    {"match": "weather", "completion": ANSWER, "after_tool": True},
    {"match": "", "completion": "Just a greeting.\n</think>\n\nHello!"},
]
QUESTION = {"role": "user", "content": "What is the weather in Shanghai? Search, too."}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    script: Path = folder / "script.jsonl"
    script.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in SCRIPT))
    with serving(str(folder), "--served-model-name", "m", "--scripted", str(script)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="x")


def whole(client: OpenAI, messages: list[dict]) -> dict:
    answer = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    message = answer.choices[0].message
    calls = [(c.function.name, c.function.arguments) for c in message.tool_calls or []]
    return {
        "reasoning": message.model_extra["reasoning_content"],
        "content": message.content or "",
        "calls": calls,
        "finish_reason": answer.choices[0].finish_reason,
        "usage": answer.usage.model_dump(exclude={"prompt_tokens_details"}),
    }


def streamed(client: OpenAI, messages: list[dict]) -> tuple[dict, int]:
    result = {"reasoning": "", "content": "", "finish_reason": None, "usage": None}
    calls: dict[int, list[str]] = {}
    num_events = 0
    for chunk in client.chat.completions.create(
        model="m",
        messages=messages,
        tools=TOOLS,
        stream=True,
        stream_options={"include_usage": True},
    ):
        num_events += 1
        if chunk.usage:
            result["usage"] = chunk.usage.model_dump(exclude={"prompt_tokens_details"})
        for choice in chunk.choices:
            result["reasoning"] += choice.delta.model_extra.get("reasoning_content") or ""
            result["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
            result["finish_reason"] = choice.finish_reason or result["finish_reason"]
    return {**result, "calls": [tuple(calls[i]) for i in sorted(calls)]}, num_events


def test_streamed_chat_with_reasoning_and_two_calls_is_the_whole_one(client: OpenAI) -> None:
    answer = whole(client, [QUESTION])
    assert answer["reasoning"] == "The user wants two things.\nI call both tools."
    assert answer["content"] == "One moment."
    assert [(name, json.loads(arguments)) for name, arguments in answer["calls"]] == [
        ("get_weather", {"city": "上海", "days": 3}),
        ("search", {"query": 'a "quoted" & <b>line</b>\nnext'}),
    ]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
    events, num_events = streamed(client, [QUESTION])
    assert num_events > 20
    assert events == answer


def test_the_tool_loop_goes_on(client: OpenAI) -> None:
    first = client.chat.completions.create(model="m", messages=[QUESTION], tools=TOOLS)
    assistant = first.choices[0].message.model_dump(exclude_none=True)
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        for call in reversed(assistant["tool_calls"])
    ]
    answer = whole(client, [QUESTION, assistant, *results])
    assert answer["reasoning"] == "The results are in."
    assert answer["content"] == "Shanghai will be sunny."
    assert answer["calls"] == []
    assert answer["finish_reason"] == "stop"


def test_a_call_that_a_stop_string_cuts_does_not_look_complete(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=[QUESTION], tools=TOOLS, stop=["line</b>"]
    )
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert len(choice.message.tool_calls) == 2


def test_the_last_line_of_the_script_answers_the_rest(client: OpenAI) -> None:
    answer = whole(client, [{"role": "user", "content": "Hi"}])
    assert (answer["reasoning"], answer["content"]) == ("Just a greeting.", "Hello!")
