"""Finds the four markers of M2's output and writes each as one character no text can hold.

Markers become lone surrogates: decoded UTF-8 never contains them, so the parser behind reads one
string in which structure and the same letters spelled by the model cannot be confused.
"""

from __future__ import annotations

import re

from m2serve.chat.control import CALL_END, CALL_START, THINK_END, THINK_START, ControlTokens

M_THINK_START = "\udc00"
M_THINK_END = "\udc01"
M_CALL_START = "\udc02"
M_CALL_END = "\udc03"

_MARKERS = {
    THINK_START: M_THINK_START,
    THINK_END: M_THINK_END,
    CALL_START: M_CALL_START,
    CALL_END: M_CALL_END,
}
_TEXT_OF_MARKER = {ord(marker): text for text, marker in _MARKERS.items()}
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKER_TEXTS = re.compile("|".join(re.escape(text) for text in _MARKERS))


def plain(text: str) -> str:
    """The text with its markers spelled out again."""
    return text.translate(_TEXT_OF_MARKER) if _SURROGATES.search(text) else text


class MarkerScanner:
    """By token id when `control` is given; else by text, holding back what may become a marker."""

    def __init__(self, control: ControlTokens | None) -> None:
        self._by_text = control is None
        self._text_of_id: dict[int, str] = {}
        if control is not None:
            texts = control.text_of_ids()
            self._text_of_id = {id: text for id, text in texts.items() if text in _MARKERS}
        self._held = ""

    def push(self, text: str, token_id: int | None) -> str:
        text = _SURROGATES.sub("\ufffd", text)
        if self._by_text:
            return self._scan(text)
        marker = self._text_of_id.get(token_id) if token_id is not None else None
        # A character the previous ids left incomplete comes out in front of the marker.
        return text if marker is None else text.removesuffix(marker) + _MARKERS[marker]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _scan(self, text: str) -> str:
        text = self._held + text
        start = text.rfind("<")
        begun = start != -1 and any(
            marker != text[start:] and marker.startswith(text[start:]) for marker in _MARKERS
        )
        end = start if begun else len(text)
        self._held = text[end:]
        return _MARKER_TEXTS.sub(lambda match: _MARKERS[match[0]], text[:end])
