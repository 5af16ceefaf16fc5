"""Whether a text goes round in circles. Pure.

Two signs: the end of the text is one unit over and over (prefix function of the reversed end,
linear in its length), or most lines are one line with other numbers in it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

WINDOW_CHARS = 8000
MIN_COUNT = 5
MIN_CHARS = 120
MIN_LINE_CHARS = 20
MIN_LINES = 10

_DIGITS = re.compile(r"\d{1,20}")


@dataclass(frozen=True)
class Repetition:
    """`unit` stands `count` times, in all or in a row at the end."""

    unit: str
    count: int


def find_repetition(text: str) -> Repetition | None:
    """The repetition a text is caught in, or None."""
    return _at_the_end(text.rstrip("\n")) or _by_lines(text)


def _at_the_end(text: str) -> Repetition | None:
    """The longest end of the text that one unit fills MIN_COUNT times and MIN_CHARS long."""
    end = text[-WINDOW_CHARS:]
    found = None
    for length, border in enumerate(_borders(end[::-1]), start=1):
        period = length - border
        if length >= MIN_CHARS and length >= MIN_COUNT * period:
            found = Repetition(end[-period:], length // period)
    return found


def _borders(text: str) -> list[int]:
    """For each beginning of the text, the longest proper beginning that also ends it (Knuth,
    Morris and Pratt); its length less that is its shortest period.
    """
    borders = [0] * len(text)
    border = 0
    for index in range(1, len(text)):
        while border and text[index] != text[border]:
            border = borders[border - 1]
        border += text[index] == text[border]
        borders[index] = border
    return borders


def _by_lines(text: str) -> Repetition | None:
    """A line of some length that, numbers apart, makes up more than half of the text."""
    lines = (_DIGITS.sub("0", line.strip()) for line in text.splitlines())
    counts = Counter(line for line in lines if len(line) >= MIN_LINE_CHARS)
    if not counts:
        return None
    line, count = counts.most_common(1)[0]
    if count >= MIN_LINES and count * len(line) * 2 > len(text):
        return Repetition(line, count)
    return None
