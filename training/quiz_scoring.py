"""Is an answer right: the rule of each set, and what else a row says about it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.conversations.multiple_choice import LETTERS
from training.quiz_items import Item

_LETTER = re.compile(r"\(([A-J])\)")
CHOICE_SETS = ("knowledge", "knowledge_zh")
TOOL_SETS = ("tools", "tools_parallel")
EXACT_SETS = ("copying", "tool_answers")
VERDICTS = ("Yes.", "No.", "对。", "不对。")  # one of them is part of another


@dataclass(frozen=True)
class Answer:
    """What came back; `calls` holds (name, arguments as JSON text)."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    finish_reason: str
    num_tokens: int


@dataclass(frozen=True)
class Row:
    """`schema_valid`: every call names an offered tool and fits its schema (None: no tool set).

    `fingerprint` tells questions apart that have the same id; rows of older files have none.
    """

    id: str
    set: str
    category: str
    is_right: bool
    is_parsed: bool
    schema_valid: bool | None
    finish_reason: str
    num_tokens: int
    given: str
    expected: str
    depth: float | None
    fingerprint: str = ""


def grade(item: Item, answer: Answer) -> Row:
    if item.set in TOOL_SETS:
        calls = [(name, _load(arguments)) for name, arguments in answer.calls]
        is_right = calls == [(name, arguments) for name, arguments in item.calls]
        valid = bool(calls) and all(fits_schema(item, name, given) for name, given in calls)
        given, expected = (
            json.dumps(calls, ensure_ascii=False),
            json.dumps(item.calls, ensure_ascii=False),
        )
        return _row(item, answer, is_right, bool(calls), valid, given, expected)
    given = answer.content.strip()
    is_parsed = bool(given)
    if item.set in CHOICE_SETS:
        letters = [given] if given in LETTERS and given else _LETTER.findall(given)
        is_parsed = bool(letters)
        given = letters[-1] if letters else given
        is_right = given == item.answer
    elif item.set == "json_object":
        is_right = _load(given) == _load(item.answer)
    elif item.set in EXACT_SETS:
        is_right = given == item.answer
    elif item.answer in VERDICTS:
        is_right = given.startswith(item.answer)
    elif item.set == "arithmetic":
        is_right = _first_number(given.rpartition("=")[2]) == item.answer
    else:
        is_right = contains(given, item.answer)
    return _row(item, answer, is_right, is_parsed, None, given, item.answer)


def _first_number(text: str) -> str:
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    return found[0] if found else ""


def contains(text: str, wanted: str) -> bool:
    """The wanted text, not as a part of a longer word or number."""
    found = re.escape(wanted.lower())
    before = r"(?<![0-9a-z])" if wanted[:1].isascii() else ""
    behind = r"(?![0-9a-z])" if wanted[-1:].isascii() else ""
    return re.search(before + found + behind, text.lower()) is not None


def fits_schema(item: Item, name: str, given: Any) -> bool:
    """The part of JSON schema the generated tools use: types, enumerations, bounds, required
    keys."""
    functions = {tool["function"]["name"]: tool["function"] for tool in item.tools}
    if name not in functions or not isinstance(given, dict):
        return False
    shape = functions[name]["parameters"]
    if not set(shape["required"]) <= set(given) <= set(shape["properties"]):
        return False
    return all(_fits(shape["properties"][key], value) for key, value in given.items())


def _fits(schema: Mapping[str, Any], value: Any) -> bool:
    kinds: dict[str, type | tuple[type, ...]] = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
    }
    is_kind = isinstance(value, kinds[schema["type"]])
    if schema["type"] != "boolean" and isinstance(value, bool):
        return False
    if schema["type"] == "array":
        return is_kind and all(_fits(schema["items"], part) for part in value)
    if not is_kind or value not in schema.get("enum", [value]):
        return False
    return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _row(
    item: Item,
    answer: Answer,
    is_right: bool,
    is_parsed: bool,
    valid: bool | None,
    given: str,
    expected: str,
) -> Row:
    return Row(
        item.id,
        item.set,
        item.category,
        is_right,
        is_parsed,
        valid,
        answer.finish_reason,
        answer.num_tokens,
        given,
        expected,
        item.depth,
        item.fingerprint,
    )
