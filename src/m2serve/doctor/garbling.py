"""Whether a text is no language: what broken weights, kernels and NaN logits look like. Pure.

NaN logits make a sampler choose one id for ever, most often id 0, which is "!".
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

MIN_CHARS = 20
MAX_SHARE_OF_ONE_CHARACTER = 0.5
MAX_SHARE_OF_REPLACEMENTS = 0.01
MAX_SHARE_OF_SCRIPT_CHANGES = 0.08
MIN_LETTERS = 40
MAX_LETTERS_A_WORD = 30

# The first code point of each block of letters, and the script it belongs to.
_SCRIPTS = (
    (0x41, "latin"),
    (0x370, "greek"),
    (0x400, "cyrillic"),
    (0x530, "armenian"),
    (0x590, "hebrew"),
    (0x600, "arabic"),
    (0x900, "indic"),
    (0xE00, "thai"),
    (0x10A0, "georgian"),
    (0x1100, "hangul"),
    (0x1200, "ethiopic"),
    (0x1E00, "latin"),
    (0x1F00, "greek"),
    (0x2E80, "cjk"),
    (0xAC00, "hangul"),
    (0xD7B0, "other"),
    (0xF900, "cjk"),
    (0xFB00, "other"),
    (0x20000, "cjk"),
)


def find_garbling(text: str) -> str:
    """Why the text is no language, as the rest of a sentence; "" when nothing speaks against it."""
    marks = [c for c in text if not c.isspace()]
    if len(marks) < MIN_CHARS:
        return ""
    character, count = Counter(marks).most_common(1)[0]
    if count > MAX_SHARE_OF_ONE_CHARACTER * len(marks):
        return f"{count} of {len(marks)} characters are {character!r}, as NaN logits give"
    broken = marks.count("\ufffd")
    if broken > MAX_SHARE_OF_REPLACEMENTS * len(marks):
        return f"{broken} of {len(marks)} characters are broken UTF-8"
    return _mixed_scripts(marks) or _endless_words(text)


def _mixed_scripts(marks: list[str]) -> str:
    scripts = [_script(c) for c in marks if c.isalpha()]
    changes = sum(a != b for a, b in pairwise(scripts))
    if len(scripts) < MIN_LETTERS or changes <= MAX_SHARE_OF_SCRIPT_CHANGES * len(scripts):
        return ""
    return f"the script changes {changes} times in {len(scripts)} letters"


def _endless_words(text: str) -> str:
    words = [w for w in text.split() if w.isascii() and w.isalpha()]
    letters = sum(map(len, words))
    if letters < MIN_LETTERS or letters <= MAX_LETTERS_A_WORD * len(words):
        return ""
    return f"words have {letters // len(words)} letters on average"


def _script(character: str) -> str:
    code = ord(character)
    return next((script for first, script in reversed(_SCRIPTS) if code >= first), "other")
