"""What the fields for structured output mean to the engine. A scripted engine answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine, says, tiny_tokenizer
from fake_server import FakeServer, fake_server, sse

from m2serve.engine.request import EngineInfo, StructuredOutput

CONTROL = tiny_tokenizer().control
BREAKS = tuple(tiny_tokenizer().encode("\n\n"))
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": [1]}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@dataclass
class ForeignEngine(FakeEngine):
    """One that judges schemas itself."""

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info, checks_structured_output=True)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


@pytest.fixture
def engine(server: FakeServer) -> FakeEngine:
    server.engine.script = says('It is.\n</think>\n\n{"a": 1}')
    server.engine.requests.clear()
    return server.engine


def asked(engine: FakeEngine) -> StructuredOutput:
    form = engine.requests[-1].sampling.structured_output
    assert form is not None
    return form


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_object"}}, "json_object", ""),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
            }
        },
        "json_schema",
        json.dumps(SCHEMA, separators=(",", ":")),
    ),
    ({"structured_outputs": {"json": "{}"}}, "json_schema", "{}"),
    ({"structured_outputs": {"json": {}, "regex": None}}, "json_schema", "{}"),
    ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    (
        {"structured_outputs": {"regex": "a+", "disable_any_whitespace": False}},
        "regex",
        "a+",
    ),
    ({"structured_outputs": {"choice": ["a", "世"]}}, "choice", '["a","世"]'),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
    ({"guided_json": {"type": "null"}}, "json_schema", '{"type":"null"}'),
    ({"guided_regex": "[ab]", "guided_decoding_backend": "xgrammar"}, "regex", "[ab]"),
    ({"guided_choice": ["x"]}, "choice", '["x"]'),
    ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
]


@pytest.mark.parametrize(("fields", "kind", "text"), FIELDS)
def test_every_field_reaches_the_engine(
    server: FakeServer, engine: FakeEngine, fields: dict[str, Any], kind: str, text: str
) -> None:
    """In a chat behind the thinking; in a completion at once."""
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    assert asked(engine) == StructuredOutput(
        kind=kind,  # type: ignore[arg-type]
        text=text,
        after_token_ids=(CONTROL.think_end,),
        prefix_token_ids=BREAKS,
    )
    assert server.complete(**fields).status_code == 200
    assert asked(engine) == StructuredOutput(kind=kind, text=text)  # type: ignore[arg-type]


def test_text_asks_for_nothing(server: FakeServer, engine: FakeEngine) -> None:
    for fields in ({"response_format": {"type": "text"}}, {"response_format": None}):
        assert server.chat(**fields).status_code == 200
        assert engine.requests[-1].sampling.structured_output is None


def test_content_is_what_the_form_says_streamed_or_not(
    server: FakeServer, engine: FakeEngine
) -> None:
    fields = {"response_format": {"type": "json_object"}}
    message = server.chat(**fields).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ('{"a": 1}', "It is.")
    events = sse(server.chat(stream=True, **fields))
    deltas = [e["choices"][0]["delta"] for e in events if isinstance(e, dict) and e["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == '{"a": 1}'


def test_line_breaks_that_belong_to_the_answer_stay(server: FakeServer, engine: FakeEngine) -> None:
    """The two behind </think> are the format's, all others the answer's."""
    engine.script = says("x</think>\n\n\n\nab\n")
    message = server.chat(guided_regex=r"\n\nab\n").json()["choices"][0]["message"]
    assert message["content"] == "\n\nab\n"


def test_every_choice_has_the_form(server: FakeServer, engine: FakeEngine) -> None:
    server.chat(n=3, guided_regex="a")
    forms = [request.sampling.structured_output for request in engine.requests]
    assert len(forms) == 3
    assert len(set(forms)) == 1


def test_tools_that_are_offered_may_be_called_instead(
    server: FakeServer, engine: FakeEngine
) -> None:
    fields = {"response_format": {"type": "json_object"}, "tools": [TOOL]}
    call = '<minimax:tool_call>\n<invoke name="f">\n</invoke>\n</minimax:tool_call>'
    engine.script = says(f"x</think>\n\n{call}")
    answer = server.chat(**fields).json()["choices"][0]
    assert asked(engine).free_token_ids == (CONTROL.call_start,)
    assert answer["finish_reason"] == "tool_calls"
    server.chat(**fields, tool_choice="none")
    assert asked(engine).free_token_ids == ()


NAMED = {"type": "function", "function": {"name": "f"}}


def test_a_tool_choice_forces_a_call_behind_the_thinking(
    server: FakeServer, engine: FakeEngine
) -> None:
    for choice, repeats in (("required", True), (NAMED, False)):
        assert server.chat(tools=[TOOL], tool_choice=choice).status_code == 200
        form = asked(engine)
        assert form.kind == "tool_calls"
        assert form.after_token_ids == (CONTROL.think_end,)
        assert ("call+" in form.text) is repeats
        assert form.free_token_ids == ()
    server.chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert "call+" not in asked(engine).text


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tool_choice": "required"}, "'required', but no tools were sent"),
        ({"tool_choice": NAMED}, "'f', but no tools were sent"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "'g', which is not among those sent",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": NAMED,
                "response_format": {"type": "json_object"},
            },
            "send one of both",
        ),
    ],
)
def test_what_cannot_be_forced_is_said(
    server: FakeServer, fields: dict[str, Any], problem: str
) -> None:
    answer = server.chat(**fields)
    assert answer.status_code == 400
    assert problem in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "tool_choice"


def test_an_answer_that_is_continued_has_the_form_at_once(
    server: FakeServer, engine: FakeEngine
) -> None:
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '{"a":'}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    answer = server.chat(messages=begun, guided_regex="1}", **fields)
    assert answer.status_code == 200, answer.text
    assert (asked(engine).after_token_ids, asked(engine).prefix_token_ids) == ((), ())


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ("]~b]ai\n<think>\n", True),
        ("]~b]ai\n<think>\nso</think>\n\n", False),
        ("]~b]ai\n<think>\nso</think>\n\nno[e~[\n]~b]ai\n<think>\n", True),
        ("<think> so[e~[", False),
        ("The sky", False),
    ],
)
def test_completions_look_for_thinking_in_their_prompt(
    server: FakeServer, engine: FakeEngine, prompt: str, thinks: bool
) -> None:
    server.complete(prompt=prompt, guided_regex="a")
    assert asked(engine).after_token_ids == ((CONTROL.think_end,) if thinks else ())
    ids = tiny_tokenizer().encode(prompt, allow_control=True)
    server.complete(prompt=ids, guided_regex="a")
    assert asked(engine).prefix_token_ids == (BREAKS if thinks else ())


def test_an_engine_with_rules_of_its_own_is_asked_itself() -> None:
    with fake_server(ForeignEngine(script=says("x</think>\n\ny"))) as running:
        unknown_here = {"guided_json": {"type": "array", "uniqueItems": True}}
        assert running.chat(**unknown_here).status_code == 200
        for wrong in ({"guided_json": "{"}, {"structured_outputs": {"choice": ["a", ""]}}):
            assert running.chat(**wrong).status_code == 400
        too_long = running.chat(guided_regex="a" * 70_000)
        assert (too_long.status_code, too_long.json()["error"]["param"]) == (
            400,
            "structured_output",
        )
    with fake_server() as running:
        assert running.chat(**unknown_here).status_code == 400
