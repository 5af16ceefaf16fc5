"""The part of the output that is not understood yet, read and looked ahead in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from m2serve.chat.markers import plain
from m2serve.chat.tags import Incomplete, OpenTag, close_tag, gap, open_tag

Found = TypeVar("Found")


class OutputReader:
    """A text that grows at its end and is taken from its front.

    A look raises Incomplete while more text could change the answer. Once the text is `final`,
    what is cut off is no tag, and the end is a place where anything may have been meant to follow.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.final = False

    def append(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    @property
    def is_empty(self) -> bool:
        return self.at == len(self.text)

    @property
    def char(self) -> str:
        """The next character, a marker perhaps; "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, end: int) -> str:
        """The text up to `end`, markers spelled out."""
        text = plain(self.text[self.at : end])
        self.at = end
        return text

    def take_one(self) -> str:
        return self.take(self.at + 1)

    def take_until(self, pattern: re.Pattern[str], *, skip: int = 0) -> str:
        """The text up to the next match that is at least `skip` characters away, or all of it."""
        found = pattern.search(self.text, self.at + skip)
        return self.take(found.start() if found else len(self.text))

    def open_tag(self, start: int, word: str) -> OpenTag | None:
        return self._look(lambda: open_tag(self.text, start, word))

    def close_tag(self, start: int, word: str) -> int | None:
        return self._look(lambda: close_tag(self.text, start, word))

    def block(self, start: int) -> OpenTag | None:
        """The `<invoke ...>` behind the `<minimax:tool_call>` at `start`."""
        behind = self._look(lambda: gap(self.text, start + 1))
        return None if behind is None else self.open_tag(behind, "invoke")

    def is_followed(self, start: int, words: Sequence[str], markers: str) -> bool:
        """Whether one of these tags ("/word" closes) or markers, or the end, is next at `start`."""
        try:
            position = gap(self.text, start)
            if position is None:
                return False
            return self.text[position] in markers or any(
                close_tag(self.text, position, word[1:]) is not None
                if word.startswith("/")
                else open_tag(self.text, position, word) is not None
                for word in words
            )
        except Incomplete:
            if self.final:
                return True
            raise

    def _look(self, read: Callable[[], Found | None]) -> Found | None:
        try:
            return read()
        except Incomplete:
            if self.final:
                return None
            raise
