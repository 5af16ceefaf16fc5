"""Answers in every shape endpoints send them, and in none."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.doctor.answer import Answer, Call, StreamedAnswer, whole_answer
from m2serve.doctor.result import MAX_SHOWN_CHARS, shown

CALL = {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}
NAMES = st.sampled_from(
    ["choices", "message", "delta", "tool_calls", "function", "index", "usage", "content", "name"]
)
LEAVES = st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["", "text"])
SHAPED = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_whole_answer(field: str) -> None:
    message = {field: "I think", "content": None, "tool_calls": [CALL]}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}
    answer = whole_answer(body, 0.5)
    assert answer == Answer(
        200,
        reasoning="I think",
        calls=(Call("c1", "f", '{"a": 1}'),),
        finish_reason="tool_calls",
        prompt_tokens=7,
        completion_tokens=3,
        ttft_s=0.5,
    )
    assert answer.text == "I think"


def test_a_streamed_answer_is_the_sum_of_its_deltas() -> None:
    answer = StreamedAnswer(10.0)
    deltas: list[dict[str, Any]] = [
        {"role": "assistant"},
        {"reasoning": "I "},
        {"reasoning": "think"},
        {"content": "Hi"},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g"}}]},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    for number, delta in enumerate(deltas):
        answer.add({"choices": [{"delta": delta, "finish_reason": None}]}, 10.0 + number)
    answer.add({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}, 30.0)
    details = {"cached_tokens": 4}
    answer.add({"choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": details}}, 31)
    assert answer.finish() == Answer(
        200,
        reasoning="I think",
        content="Hi",
        calls=(Call("c1", "f", '{"a": 1}'), Call("c2", "g", "{}")),
        finish_reason="tool_calls",
        prompt_tokens=9,
        cached_tokens=4,
        ttft_s=1.0,
        num_argument_deltas=3,
    )


@given(SHAPED)
@settings(max_examples=100, deadline=None)
def test_no_json_breaks_it(value: Any) -> None:
    body = value if isinstance(value, dict) else {"choices": value}
    assert whole_answer(body, 0.0).status == 200
    answer = StreamedAnswer(0.0)
    answer.add(body, 1.0)
    assert answer.finish().status == 200


def test_what_is_shown_is_bounded_and_plain() -> None:
    assert shown("a\x1b[31mb") == "a\ufffd[31mb"
    assert len(shown("x" * 10**6)) <= MAX_SHOWN_CHARS + 10
    assert shown({"a": "ü"}) == '{"a": "ü"}'
