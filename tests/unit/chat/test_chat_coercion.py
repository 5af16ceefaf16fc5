import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2serve.chat.coercion import Coercer

INTEGER = {"type": "integer"}
NUMBER = {"type": "number"}
BOOLEAN = {"type": "boolean"}
OBJECT = {"type": "object"}
ARRAY = {"type": "array"}


def coerce(schema: Any, text: str, **root: Any) -> Any:
    return Coercer({"properties": {"x": schema}, **root}).coerce("x", text)


@pytest.mark.parametrize(
    ("schema", "text", "wanted"),
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "string"}, "null", "null"),
        (OBJECT, '{"a": "\\ud800"}', '{"a": "\\ud800"}'),
        ({}, "3", "3"),
        (True, "3", "3"),
        ({"type": "file"}, "3", "3"),
        (INTEGER, "3", 3),
        (INTEGER, " +3\n", 3),
        (INTEGER, "-0", 0),
        (INTEGER, "3x", "3x"),
        (INTEGER, "1_000", "1_000"),
        (INTEGER, "３", "３"),
        (INTEGER, "3.0", 3.0),
        (INTEGER, "null", "null"),
        (INTEGER, "", ""),
        (INTEGER, "9" * 5000, "9" * 5000),
        (NUMBER, "3", 3),
        (NUMBER, "12345678901234567890", 12345678901234567890),
        (NUMBER, "2.50", 2.5),
        (NUMBER, "1e3", 1000),
        (NUMBER, "1e300", 1e300),
        (NUMBER, ".5", 0.5),
        (NUMBER, "1e999", "1e999"),
        (NUMBER, "nan", "nan"),
        (NUMBER, "Infinity", "Infinity"),
        (BOOLEAN, "True", True),
        (BOOLEAN, "1", True),
        (BOOLEAN, "false", False),
        (BOOLEAN, "0", False),
        (BOOLEAN, "yes", "yes"),
        ({"type": ["string", "null"]}, "NULL", None),
        ({"type": ["string", "null"]}, "none", "none"),
        ({"type": ["string", "null"]}, "abc", "abc"),
        ({"type": ["integer", "string"]}, "3", 3),
        ({"type": ["integer", "string"]}, "a", "a"),
        ({"type": "string", "nullable": True}, "null", None),
        ({"anyOf": [INTEGER, {"type": "null"}]}, "null", None),
        ({"anyOf": [INTEGER, {"type": "null"}]}, "7", 7),
        ({"oneOf": [{"allOf": [BOOLEAN]}]}, "true", True),
        ({"enum": [1, 2]}, "2", 2),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"enum": ["a", None]}, "null", None),
        ({"const": True}, "true", True),
        (OBJECT, '{"a": [1, "中"]}', {"a": [1, "中"]}),
        (OBJECT, '{"a": NaN}', '{"a": NaN}'),
        (OBJECT, '{"a": 1e999}', '{"a": 1e999}'),
        (OBJECT, "{'a': 1}", "{'a': 1}"),
        (OBJECT, "[1]", [1]),
        ({"type": ["object", "string"]}, "[1]", "[1]"),
        (ARRAY, "[1, 2]", [1, 2]),
        (ARRAY, "[" * 70 + "]" * 70, "[" * 70 + "]" * 70),
        (ARRAY, "[" * 100_000, "[" * 100_000),
        *(({"type": alias}, "3", 3) for alias in ("int", "int32", "uint8", "long", "unsigned")),
        *(({"type": alias}, "3.5", 3.5) for alias in ("float", "float64", "double")),
        *(({"type": alias}, "3", "3") for alias in ("str", "text", "varchar", "char", "enum")),
        ({"type": "bool"}, "true", True),
        ({"type": "dict"}, "{}", {}),
        *(({"type": alias}, "[]", []) for alias in ("arr", "list", "sequence")),
    ],
)
def test_values(schema: Any, text: str, wanted: Any) -> None:
    value = coerce(schema, text)
    assert value == wanted
    assert type(value) is type(wanted)


def test_an_unknown_parameter_is_a_string_unless_the_schema_types_the_rest() -> None:
    assert Coercer({"properties": {}}).coerce("y", "3") == "3"
    assert Coercer({"additionalProperties": INTEGER}).coerce("y", "3") == 3
    assert Coercer({"properties": [], "additionalProperties": True}).coerce("y", "3") == "3"


@pytest.mark.parametrize(
    ("schema", "text", "wanted"),
    [
        (
            {"type": "object", "properties": {"n": INTEGER}},
            '{"n": "3", "m": "3"}',
            {"n": 3, "m": "3"},
        ),
        ({"type": "array", "items": NUMBER}, '["1.5", 2, "x"]', [1.5, 2, "x"]),
        (
            {"type": "array", "items": {"type": "object", "properties": {"b": BOOLEAN}}},
            '[{"b": "true"}]',
            [{"b": True}],
        ),
        ({"anyOf": [{"type": "object", "properties": {"n": INTEGER}}]}, '{"n": "3"}', {"n": 3}),
        ({"type": "object", "properties": {"s": {"type": "string"}}}, '{"s": "3"}', {"s": "3"}),
        ({"type": "object", "properties": {"o": OBJECT}}, '{"o": "{}"}', {"o": "{}"}),
    ],
)
def test_nested_values(schema: Any, text: str, wanted: Any) -> None:
    assert coerce(schema, text) == wanted


def test_references_inside_the_schema() -> None:
    definitions = {"a/b": {"type": "object", "properties": {"n": INTEGER}}, "loop": {}}
    definitions["loop"]["$ref"] = "#/$defs/loop"
    root = {"$defs": definitions}
    assert coerce({"$ref": "#/$defs/a~1b"}, '{"n": "3"}', **root) == {"n": 3}
    assert coerce({"$ref": "#/$defs/loop"}, "3", **root) == "3"
    assert coerce({"$ref": "#/$defs/none/x"}, "3", **root) == "3"
    assert coerce({"$ref": "http://example.com/x"}, "3", **root) == "3"


def test_a_schema_that_branches_without_end_is_read_once() -> None:
    branching: dict = {"type": "integer"}
    branching["anyOf"] = [branching, {"oneOf": [branching, branching]}, {"$ref": "#"}]
    assert coerce(branching, "3") == 3
    wide = {"anyOf": [{"anyOf": [INTEGER] * 10_000}] * 10_000}
    assert coerce(wide, "3") == 3


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(_json, st.text())
def test_any_schema_and_any_text_give_finite_json(schema: Any, text: str) -> None:
    value = coerce(schema, text)
    json.dumps(value, allow_nan=False)


@given(st.lists(_json) | st.dictionaries(st.text(), _json))
def test_json_of_the_right_type_is_read_as_written(value: Any) -> None:
    assert coerce({"type": ["object", "array"]}, json.dumps(value)) == value
