"""The tags inside a tool-call block, read at a place of a text that may still grow.

    open  := "<" WORD ws+ "name" ws* "=" ws* (`"NAME"` | `'NAME'` | NAME) ws* ">"
    close := "</" WORD ws* ">"

A reader returns where the tag ends, or None when none stands there, and raises Incomplete when the
text ends before that is decided. Everything has a bound, so no text is held back for long.
"""

from __future__ import annotations

from typing import NamedTuple

from m2serve.chat.markers import M_CALL_END, M_CALL_START, M_THINK_END, M_THINK_START
from m2serve.chat.tools import MAX_NAME_CHARS

MAX_GAP_CHARS = 64

BLANKS = " \t\r\n"

_MARKERS = {M_THINK_START, M_THINK_END, M_CALL_START, M_CALL_END}
_NOT_IN_NAMES = frozenset("<>\r\n") | _MARKERS


class Incomplete(Exception):
    """The text so far is the beginning of what was looked for."""


class OpenTag(NamedTuple):
    """`end` is the position behind the tag."""

    name: str
    end: int


def open_tag(text: str, start: int, word: str) -> OpenTag | None:
    position = _literal(text, start, f"<{word}")
    if position is None:
        return None
    if position < len(text) and text[position] not in BLANKS:
        return None
    for part in ("name", "="):
        position = gap(text, position)
        position = None if position is None else _literal(text, position, part)
        if position is None:
            return None
    position = gap(text, position)
    return None if position is None else _name(text, position)


def close_tag(text: str, start: int, word: str) -> int | None:
    position = _literal(text, start, f"</{word}")
    if position is not None:
        position = gap(text, position)
    return None if position is None else _literal(text, position, ">")


def gap(text: str, start: int) -> int | None:
    """Behind the blanks at `start`; None when there are too many of them."""
    limit = min(len(text), start + MAX_GAP_CHARS)
    position = start
    while position < limit and text[position] in BLANKS:
        position += 1
    if position < limit:
        return position
    if position < len(text):
        return None if text[position] in BLANKS else position
    raise Incomplete


def _literal(text: str, start: int, wanted: str) -> int | None:
    found = text[start : start + len(wanted)]
    if found == wanted:
        return start + len(wanted)
    if wanted.startswith(found):
        raise Incomplete
    return None


def _name(text: str, start: int) -> OpenTag | None:
    if start == len(text):
        raise Incomplete
    quote = text[start] if text[start] in "\"'" else ""
    first = start + len(quote)
    end = first
    ends = quote or ">" + BLANKS
    while end < len(text) and text[end] not in ends:
        if text[end] in _NOT_IN_NAMES or end - first >= MAX_NAME_CHARS:
            return None
        end += 1
    if end == len(text):
        raise Incomplete
    if end == first:
        return None
    behind = gap(text, end + len(quote))
    close = None if behind is None else _literal(text, behind, ">")
    return None if close is None else OpenTag(text[first:end], close)
