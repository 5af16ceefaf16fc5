"""Which forms are taken and which are refused, in bounded time. No engine."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import pytest

from m2serve.engine.request import StructuredKind, StructuredOutput
from m2serve.engine.structured_output import (
    MAX_CHOICES,
    MAX_SCHEMA_OBJECTS,
    MAX_TEXT_BYTES,
    check_structured_output,
    llguidance_grammar,
)
from m2serve.errors import RequestError

MAX_CPU_S = 10.0


def form(kind: StructuredKind, value: Any = "") -> StructuredOutput:
    return StructuredOutput(kind=kind, text=value if isinstance(value, str) else json.dumps(value))


def schema(value: Any) -> StructuredOutput:
    return form("json_schema", value)


def reference_chain(length: int) -> dict[str, Any]:
    """`length` levels, each with three objects, that only references make deep."""
    levels = {
        f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}}
        for i in range(length)
    }
    return {"$defs": {**levels, f"d{length}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


GOOD = [
    form("json_object"),
    schema({}),
    schema({"type": "string", "pattern": "^[a-z]{2,5}$"}),
    schema({"type": "number", "multipleOf": 0.01}),
    schema({"type": "integer", "multipleOf": 7, "title": "t", "description": "d", "default": 7}),
    schema({"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "$ref": "#"}),
    schema({"properties": {"multipleOf": {"type": "integer"}}}),
    schema(reference_chain(300)),
    form("regex", r"[a-z]+@[a-z]+\.com"),
    form("regex", "^(yes|no)$"),
    form("regex", "(a+)+b"),
    form("choice", ["positive", 'a "quoted" one\n', "世界"]),
    form("grammar", 'root ::= "yes" | "no" digits\ndigits ::= [0-9]+'),
    form("grammar", 'start: "a" B\nB: /[0-9]{2}/'),
]


@pytest.mark.parametrize("good", GOOD, ids=lambda output: output.text[:30])
def test_forms_that_are_taken(good: StructuredOutput) -> None:
    check_structured_output(good, "p")


BAD = [
    (schema("nope"), "no JSON"),
    (schema([]), "an object"),
    (schema({"type": "strin"}), "strin"),
    (schema({"$ref": "http://127.0.0.1/x"}), "does not fetch"),
    (schema({"$ref": "file:///etc/passwd"}), "does not fetch"),
    (schema({"not": {}}), "not"),
    (schema('{"multipleOf": 1e400}'), "inf"),
    (form("regex", "(?=a)b"), "look"),
    (form("regex", "(a"), "unclosed"),
    (form("choice", []), "0 strings"),
    (form("choice", ["a", ""]), "strings that have characters"),
    (form("choice", ["a", 1]), "strings that have characters"),
    (form("choice", {"a": 1}), "strings that have characters"),
    (form("grammar", "start: x"), "unknown name"),
    (form("grammar", "hello"), "GBNF"),
    (form("grammar", 'start: %json {"type": "integer"}'), "%json"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=lambda value: str(value)[:50])
def test_wrong_forms_are_refused_in_one_line(bad: StructuredOutput, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_structured_output(bad, "some.field")
    assert reason in str(caught.value)
    assert (caught.value.status, caught.value.param) == (400, "some.field")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


HOSTILE = [
    (schema({"type": "integer", "multipleOf": 999_983}), "multipleOf"),
    (schema({"type": "number", "multipleOf": 0.0000007}), "multipleOf"),
    (schema({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}), "multipleOf"),
    (schema({"enum": ["x" * MAX_TEXT_BYTES]}), "bytes"),
    (schema(reference_chain(MAX_SCHEMA_OBJECTS // 3 + 1)), "objects"),
    (schema({"properties": {f"p{i}": {} for i in range(MAX_SCHEMA_OBJECTS)}}), "objects"),
    (schema("[" * 30_000 + "]" * 30_000), "no JSON"),
    (form("regex", "(" * 30_000 + ")" * 30_000), "invalid regex"),
    (form("choice", ["x"] * (MAX_CHOICES + 1)), "1001 strings"),
    (form("grammar", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000), "nested"),
    (form("grammar", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000), "recursion"),
    (form("grammar", "".join(f"a{i}: a{i + 1}\n" for i in range(5_000))), "rules"),
]


@pytest.mark.parametrize(("hostile", "reason"), HOSTILE, ids=lambda value: str(value)[:50])
def test_what_would_take_the_process_down_is_refused(
    hostile: StructuredOutput, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        check_structured_output(hostile, "p")


@pytest.mark.parametrize(
    "large",
    [
        form("regex", "|".join(f"w{i}x{i * 7}" for i in range(5_000))),
        form("regex", "(x+x+)+y" * 5_000),
        form("regex", "(a?){3000}a{3000}"),
        schema({"enum": [f"v{i}" for i in range(6_000)]}),
        schema({"type": "object", "properties": {f"p{i}": {} for i in range(990)}}),
        schema({"anyOf": [{"minimum": -(10**15) + i, "type": "integer"} for i in range(200)]}),
        schema({"type": "string", "minLength": 10**9}),
        form("grammar", "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(990)) + "a990:"),
    ],
    ids=lambda output: output.text[:30],
)
def test_the_largest_forms_end_soon(large: StructuredOutput) -> None:
    """A bound on processor time that only a hang exceeds."""
    began = time.process_time()
    with contextlib.suppress(RequestError):
        check_structured_output(large, "p")
    assert time.process_time() - began < MAX_CPU_S


def test_without_llguidance_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="pip install llguidance"):
        check_structured_output(form("json_object"), "p")


def test_blanks_between_values_are_bounded() -> None:
    """A model can write blanks for ever where a grammar lets it."""
    assert '"whitespace_pattern"' in llguidance_grammar(form("json_object"))
