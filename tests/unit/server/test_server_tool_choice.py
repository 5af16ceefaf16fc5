"""The grammar of a forced call: what the renderer writes is in it, what does not fit is not."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

import m2serve
from m2serve.chat.messages import Assistant, Conversation, System, ToolCall, User
from m2serve.chat.parser import OutputParser, ParserOptions, parse_output
from m2serve.chat.renderer import render
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import parse_tools
from m2serve.engine.request import StructuredOutput
from m2serve.engine.structured_output import (
    MAX_TOOLS_BYTES,
    check_structured_output,
    llguidance_grammar,
    load_llguidance,
)
from m2serve.errors import RequestError
from m2serve.server.tool_choice import call_form, forced_tools, offers_tools

MAX_CPU_S = 10.0
FOLDER = Path(m2serve.__file__).parent / "miniature"


def tool(name: str, properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties or {}, **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = parse_tools(
    [
        tool(
            "get_weather",
            {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["C", 'the "other"']},
                "days": {"$ref": "#/$defs/count"},
            },
            required=["city"],
            **{"$defs": {"count": {"type": "integer"}}},
        ),
        tool("mark", {"tags": {"type": "array", "items": {"type": "string"}}, "on": {}}),
        tool("free", additionalProperties=True),
        {"type": "function", "function": {"name": "bare"}},
    ]
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def ll_tokenizer() -> Any:
    return load_llguidance().LLTokenizer((FOLDER / "tokenizer.json").read_text("utf-8"))


def written(*calls: tuple[str, dict[str, Any]]) -> str:
    """Behind the thinking and its line breaks."""
    if not calls:
        return "<minimax:tool_call>\n</minimax:tool_call>"
    turn = Assistant("", "x", tuple(ToolCall("", name, values) for name, values in calls))
    conversation = Conversation(System(), (User("x"), turn))
    segments = render(conversation, add_generation_prompt=False)
    text = "".join(segment.text for segment in segments)
    return text.rpartition("</think>\n\n\n")[2].removesuffix("[e~[\n")


def accepts(ll_tokenizer: Any, tokenizer: Tokenizer, form: StructuredOutput, text: str) -> bool:
    matcher = load_llguidance().LLMatcher(ll_tokenizer, llguidance_grammar(form))
    ids = tokenizer.encode(text, allow_control=True)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


WEATHER = ("get_weather", {"city": "Zürich <b>&\n</b>", "unit": 'the "other"', "days": 3})
GOOD = [
    [WEATHER],
    [("get_weather", {"city": ""})],
    [("mark", {"tags": ["a", "世"], "on": "anything"})],
    [("mark", {}), ("bare", {}), WEATHER],
    [("free", {"whatever it is": "x", "second": "y"})],
]
BAD = [
    [("get_weather", {"unit": "C"})],
    [("get_weather", {"city": "x", "unit": "F"})],
    [("get_weather", {"city": "x", "days": "three"})],
    [("get_weather", {"city": "x", "town": "y"})],
    [("get_weather", {"city": "a</invoke>"})],
    [("mark", {"tags": "a"})],
    [("bare", {"x": "1"})],
    [("unknown", {})],
    [],
]


@pytest.mark.parametrize("calls", GOOD)
def test_what_the_renderer_writes_fits(tokenizer: Tokenizer, ll_tokenizer: Any, calls: Any) -> None:
    form = call_form(TOOLS, tokenizer, one_call=False, in_thinking=True)
    check_structured_output(form, "tools")
    text = written(*calls)
    assert accepts(ll_tokenizer, tokenizer, form, text)
    one = call_form(TOOLS, tokenizer, one_call=True, in_thinking=True)
    assert accepts(ll_tokenizer, tokenizer, one, text) is (len(calls) == 1)
    parsed = parse_output(OutputParser(TOOLS, ParserOptions()), [(f"x</think>\n\n\n{text}", None)])
    assert [call.name for call in parsed.tool_calls] == [name for name, _ in calls]


@pytest.mark.parametrize("calls", BAD)
def test_what_the_schema_forbids_does_not(
    tokenizer: Tokenizer, ll_tokenizer: Any, calls: Any
) -> None:
    form = call_form(TOOLS, tokenizer, one_call=False, in_thinking=True)
    assert not accepts(ll_tokenizer, tokenizer, form, written(*calls))


def test_a_named_tool_is_the_only_one() -> None:
    named = {"type": "function", "function": {"name": "mark"}}
    assert [tool.name for tool in forced_tools(named, TOOLS)] == ["mark"]
    assert forced_tools("required", TOOLS) == TOOLS
    assert forced_tools("auto", TOOLS) == forced_tools(None, ()) == ()
    assert [offers_tools(choice) for choice in (None, "auto", "none", named)] == [
        True,
        True,
        False,
        True,
    ]


def test_the_call_follows_the_thinking(tokenizer: Tokenizer) -> None:
    form = call_form(TOOLS, tokenizer, one_call=True, in_thinking=True)
    assert form.not_before_token_ids == (tokenizer.control.call_start,)
    assert form.after_token_ids == (tokenizer.control.think_end,)
    assert tokenizer.decode([*form.prefix_token_ids]) == "\n\n\n"
    at_once = call_form(TOOLS, tokenizer, one_call=True, in_thinking=False)
    assert (at_once.after_token_ids, at_once.prefix_token_ids) == ((), ())


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "int"}, 3, "x"),
        ({"type": "integer", "multipleOf": 999_983}, 3, "x"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 1.5, "x"),
        ({"type": "array", "items": {"$ref": "#/properties/p"}}, [1], 1),
        ({"type": "array", "items": {"type": "string", "format": "own"}}, ["x"], 1),
        ({"type": "array", "items": {"const": " %json x"}}, [" %json x"], ["y"]),
        ({"type": "array", "x-guidance": {"whitespace_pattern": "z*"}}, [1, 2], "x"),
        ({"enum": [1, 2]}, 2, 3),
    ],
)
def test_of_a_schema_as_much_is_followed_as_can_be(
    tokenizer: Tokenizer, ll_tokenizer: Any, schema: Any, good: Any, bad: Any
) -> None:
    tools = parse_tools([tool("f", {"p": schema}, required=["p"])])
    form = call_form(tools, tokenizer, one_call=True, in_thinking=False)
    check_structured_output(form, "tools")
    assert accepts(ll_tokenizer, tokenizer, form, written(("f", {"p": good})))
    assert not accepts(ll_tokenizer, tokenizer, form, written(("f", {"p": bad})))


def test_blanks_have_an_end(tokenizer: Tokenizer, ll_tokenizer: Any) -> None:
    tools = parse_tools([tool("f", {"p": {"type": "array", "items": {"type": "integer"}}})])
    form = call_form(tools, tokenizer, one_call=True, in_thinking=False)
    text = written(("f", {"p": [1, 2]}))
    assert accepts(ll_tokenizer, tokenizer, form, text)
    assert not accepts(ll_tokenizer, tokenizer, form, text.replace("[1, 2]", "[1,      2]"))


HUGE = {"d": {"description": "x" * 1_000_000}}


@pytest.mark.parametrize(
    "tools",
    [
        [tool("f", {f"p{n}": {"type": "integer"} for n in range(10_000)}, **{"$defs": HUGE})],
        [tool("f", {f"p{n}": {"$ref": "#/$defs/d"} for n in range(900)}, **{"$defs": HUGE})],
        [tool("f" * 200 + str(n), {"p": {"enum": ["x" * 900]}}) for n in range(600)],
        [tool("f", required=[f"r{n}" for n in range(500_000)])],
    ],
)
def test_huge_schemas_cost_little(tokenizer: Tokenizer, tools: list[Any]) -> None:
    start = time.process_time()
    with contextlib.suppress(RequestError):
        form = call_form(parse_tools(tools), tokenizer, one_call=True, in_thinking=False)
        check_structured_output(form, "tools")
        assert len(form.text) < MAX_TOOLS_BYTES
    assert time.process_time() - start < MAX_CPU_S
