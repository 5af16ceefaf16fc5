"""Stop strings over a stream of text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from m2serve.errors import RequestError

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024


class StopMatcher:
    """Finds the stop string that ends first; of several ending at one place, the longest.

    Text that may be the beginning of a stop string is held back. One Aho-Corasick automaton
    follows all of them, so the work is linear in the text whatever the strings are.
    """

    def __init__(self, stop: Sequence[str], *, include_stop_str_in_output: bool = False) -> None:
        """Raises RequestError for an empty string, too many of them or too long ones."""
        _check(stop)
        self._include = include_stop_str_in_output
        self._build(stop)
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown now; "" once a stop string has been `matched`."""
        if self.matched is not None:
            return ""
        if len(self._next) == 1:
            return text
        held = len(self._held)
        text = self._held + text
        for index in range(held, len(text)):
            self._step(text[index])
            self.matched = self._ends[self._state]
            if self.matched is not None:
                self._held = ""
                end = index + 1
                return text[: end if self._include else end - len(self.matched)]
        shown = len(text) - self._depth[self._state]
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """The held text, when no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> None:
        state = self._state
        while state and char not in self._next[state]:
            state = self._fail[state]
        self._state = self._next[state].get(char, 0)

    def _build(self, stop: Sequence[str]) -> None:
        """State 0 is the root; `_fail` is the longest proper suffix that is a state, too."""
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._ends: list[str | None] = [None]
        for string in stop:
            self._add(string)
        self._fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                queue.append(child)
                fallback = self._fail[state]
                while fallback and char not in self._next[fallback]:
                    fallback = self._fail[fallback]
                self._fail[child] = self._next[fallback].get(char, 0)
                self._ends[child] = self._ends[child] or self._ends[self._fail[child]]

    def _add(self, string: str) -> None:
        state = 0
        for char in string:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._ends.append(None)
            state = self._next[state][char]
        self._ends[state] = string


def _check(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise RequestError(
            f"{len(stop)} stop strings were sent; at most {MAX_STOP_STRINGS} are allowed",
            param="stop",
        )
    for index, string in enumerate(stop):
        if not 0 < len(string) <= MAX_STOP_CHARS:
            raise RequestError(
                f"stop[{index}] has {len(string)} characters; 1 to {MAX_STOP_CHARS} are allowed",
                param=f"stop[{index}]",
            )
