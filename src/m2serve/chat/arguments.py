"""The JSON of one call's arguments, written while its values arrive."""

from __future__ import annotations

import json

from m2serve.chat.coercion import STRING_ONLY, Coercer


class ArgumentsWriter:
    """Every method returns the JSON that became certain; joined they are one object.

    A value the schema wants as a string, and nothing else, is passed on as it comes; any other is
    held until `end`, when its type can be read.
    """

    def __init__(self, coercer: Coercer) -> None:
        self._coercer = coercer
        self._keys: set[str] = set()
        self._key = ""
        self._held: list[str] | None = None

    def wants(self, key: str) -> bool:
        """Whether the schema declares the key and no value of it has come."""
        return key not in self._keys and self._coercer.declares(key)

    def has(self, key: str) -> bool:
        return key in self._keys

    def begin(self, key: str) -> str:
        opening = ", " if self._keys else "{"
        self._keys.add(key)
        self._key = key
        start = f"{opening}{_dumps(key)}: "
        if self._coercer.types(key) == STRING_ONLY:
            self._held = None
            return start + '"'
        self._held = []
        return start

    def text(self, text: str) -> str:
        if self._held is None:
            return _dumps(text)[1:-1]
        self._held.append(text)
        return ""

    def end(self) -> str:
        if self._held is None:
            return '"'
        return _dumps(self._coercer.coerce(self._key, "".join(self._held)))

    def close(self) -> str:
        return "}" if self._keys else "{}"


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
