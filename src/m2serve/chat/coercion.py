"""The text of a parameter to the JSON value its schema asks for.

M2 writes every value as text; only the schema tells 3 from "3". A value that fits none of the
schema's types stays the string the model wrote: the tool's owner sees it, nothing is guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

MAX_SCHEMA_PARTS = 256
MAX_VALUE_DEPTH = 64

Schema = Mapping[str, Any]

STRING_ONLY = frozenset({"string"})

_ALIASES = {
    "string": "string",
    "null": "null",
    "none": "null",
    "integer": "integer",
    "int": "integer",
    "long": "integer",
    "short": "integer",
    "unsigned": "integer",
    "number": "number",
    "float": "number",
    "float32": "number",
    "float64": "number",
    "double": "number",
    "boolean": "boolean",
    "bool": "boolean",
    "object": "object",
    "dict": "object",
    "array": "array",
    "arr": "array",
    "list": "array",
    "sequence": "array",
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_SIZED_INTEGER = re.compile(r"u?int[0-9]{0,3}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_EXACT_FLOAT = 2.0**53  # every whole float up to here is that integer and no other


class Coercer:
    """Reads values by the schema of one tool's parameters; `$ref` is followed inside it only."""

    def __init__(self, parameters: Schema) -> None:
        self._root = parameters

    def declares(self, key: str) -> bool:
        return key in _mapping(self._root.get("properties"))

    def types(self, key: str) -> frozenset[str]:
        """JSON types the schema allows for a parameter; an unknown one is a string."""
        return self._types(self._property(self._root, key))

    def coerce(self, key: str, text: str) -> Any:
        """The value of a parameter; always finite JSON."""
        schema = self._property(self._root, key)
        types = self._types(schema)
        if types == STRING_ONLY:
            return text
        found, value = _read(text, types)
        if not found and "string" not in types:
            found, value = _read_json(text)
            found = found and value is not None
        return self._coerce_nested(value, schema) if found else text

    def _coerce_nested(self, value: Any, schema: Any) -> Any:
        """Strings inside a JSON value whose schema wants another scalar are read the same way."""
        if isinstance(value, dict):
            return {
                key: self._coerce_child(item, self._property(schema, key))
                for key, item in value.items()
            }
        if isinstance(value, list):
            items = self._first(schema, "items")
            return [self._coerce_child(item, items) for item in value]
        return value

    def _coerce_child(self, value: Any, schema: Any) -> Any:
        if not isinstance(value, str):
            return self._coerce_nested(value, schema)
        types = self._types(schema) - {"object", "array"}
        found, read = (False, None) if "string" in types else _read(value, types)
        return read if found else value

    def _types(self, schema: Any) -> frozenset[str]:
        types: set[str] = set()
        for part in self._parts(schema):
            declared = part.get("type")
            names = declared if isinstance(declared, list) else [declared]
            types.update(_type_name(name) for name in names if isinstance(name, str))
            enum = part.get("enum")
            types.update(_type_of(member) for member in (enum if isinstance(enum, list) else ()))
            if "const" in part:
                types.add(_type_of(part["const"]))
            if part.get("nullable") is True:
                types.add("null")
        return frozenset(types) or STRING_ONLY

    def _property(self, schema: Any, key: str) -> Any:
        for part in self._parts(schema):
            properties = _mapping(part.get("properties"))
            if key in properties:
                return properties[key]
        return self._first(schema, "additionalProperties")

    def _first(self, schema: Any, field: str) -> Any:
        parts = self._parts(schema)
        return next((part[field] for part in parts if isinstance(part.get(field), Mapping)), None)

    def _parts(self, schema: Any) -> Iterator[Schema]:
        """The schema and every alternative it is made of, each once."""
        waiting = [schema]
        seen: set[int] = set()
        while waiting and len(seen) < MAX_SCHEMA_PARTS:
            part = waiting.pop()
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            seen.add(id(part))
            yield part
            if isinstance(part.get("$ref"), str):
                waiting.append(self._resolve(part["$ref"]))
            for field in ("allOf", "oneOf", "anyOf"):
                if isinstance(part.get(field), list):
                    waiting.extend(reversed(part[field][:MAX_SCHEMA_PARTS]))

    def _resolve(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            return None
        node: Any = self._root
        for name in reference[2:].split("/"):
            node = _mapping(node).get(name.replace("~1", "/").replace("~0", "~"))
        return node


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _type_name(name: str) -> str:
    lower = name.strip().lower()
    return "integer" if _SIZED_INTEGER.fullmatch(lower) else _ALIASES.get(lower, "string")


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (list, "array"))
    names = (name for kind, name in kinds if isinstance(value, kind))
    return next(names, "object" if isinstance(value, Mapping) else "string")


def _read(text: str, types: frozenset[str]) -> tuple[bool, Any]:
    """(True, value) for the first of the types the text fits, from null to object."""
    word = text.strip()
    lower = word.lower()
    if "null" in types and lower == "null":
        return True, None
    if types & {"integer", "number"} and _INTEGER.fullmatch(word):
        return True, int(word)
    if "number" in types and _NUMBER.fullmatch(word):
        number = float(word)
        if math.isfinite(number):
            whole = number.is_integer() and abs(number) <= _EXACT_FLOAT
            return True, int(number) if whole else number
    if "boolean" in types and lower in ("true", "1", "false", "0"):
        return True, lower in ("true", "1")
    if types & {"object", "array"}:
        found, value = _read_json(word)
        wanted = (isinstance(value, dict) and "object" in types) or (
            isinstance(value, list) and "array" in types
        )
        return found and wanted, value
    return False, None


def _read_json(text: str) -> tuple[bool, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        # Half of a surrogate pair, written as an escape, cannot be sent to anyone.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False, None
    return _is_shallow(value), value


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_VALUE_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return True
    return False
