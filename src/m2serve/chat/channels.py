"""Reasoning and content: where text goes, and the blanks of M2's format it is rid of.

- Reasoning loses the blanks at its end, content the "\\n\\n" that follows `</think>`, so that what
  is sent back renders to the same prompt.
- Blanks in front of a call are passed on only when more text follows; those between the calls of a
  block never.
- With `keep_think` (append-think mode) nothing is taken off: content is "<think>", the reasoning,
  "</think>" and the rest.
"""

from __future__ import annotations

from m2serve.chat.control import THINK_END, THINK_START
from m2serve.chat.events import ContentDelta, Event, ReasoningDelta
from m2serve.chat.tags import BLANKS


class Channels:
    """Routes text; appends to `events`. The caller says where the model is in its answer."""

    def __init__(self, events: list[Event], *, in_reasoning: bool, keep_think: bool) -> None:
        self._events = events
        self.in_reasoning = in_reasoning
        self._keep_think = keep_think
        self._think_shown = False
        self._reasoning = _TrailingBlanks()
        self._content = _TrailingBlanks()
        self._newlines_to_skip = 0
        self.has_content = False
        self._num_calls = 0
        self._ends_in_call = False

    def push(self, text: str) -> None:
        text = self._skip_newlines(text)
        if not text:
            return
        if not self.in_reasoning:
            self._push_content(text)
        elif self._keep_think:
            self._show_think()
            self._push_content(text)
        elif shown := self._reasoning.push(text):
            self._events.append(ReasoningDelta(shown))

    def begin_reasoning(self) -> None:
        """`<think>` came; inside reasoning it says nothing new."""
        self.in_reasoning = True
        self._newlines_to_skip = 0 if self._keep_think else 1

    def end_reasoning(self) -> None:
        """`</think>` came, or a call that implies it."""
        if self._keep_think:
            self._show_think()
            self._push_content(THINK_END)
            self._think_shown = False
        else:
            self._newlines_to_skip = 2
        self.in_reasoning = False

    def begin_call(self) -> None:
        self._content.drop_behind_mark()
        self._num_calls += 1
        self._ends_in_call = True

    def end_call(self) -> None:
        """Blanks between this and the next call, or the end of the block, are the format's."""
        self._content.mark()

    def end_block(self) -> None:
        self._content.drop_behind_mark()

    def finish(self) -> None:
        """Blanks at the end of content stay, unless there is only a call before them."""
        rest = self._content.take()
        if rest and self.has_content and not self._ends_in_call:
            self._events.append(ContentDelta(rest))

    def _push_content(self, text: str) -> None:
        shown = self._content.push(text)
        if shown and not self.has_content and self._num_calls:
            shown = shown.lstrip(BLANKS)
        if shown:
            self.has_content = True
            self._ends_in_call = False
            self._events.append(ContentDelta(shown))

    def _show_think(self) -> None:
        if not self._think_shown:
            self._think_shown = True
            self._push_content(THINK_START)

    def _skip_newlines(self, text: str) -> str:
        if not self._newlines_to_skip:
            return text
        leading = len(text) - len(text.lstrip("\n"))
        skipped = min(leading, self._newlines_to_skip)
        self._newlines_to_skip = self._newlines_to_skip - skipped if skipped == len(text) else 0
        return text[skipped:]


class _TrailingBlanks:
    """Passes text on, but blanks only once something follows them."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._mark: int | None = None

    def push(self, text: str) -> str:
        body = text.rstrip(BLANKS)
        blanks = text[len(body) :]
        shown = self.take() + body if body else ""
        if blanks:
            self._held.append(blanks)
        return shown

    def take(self) -> str:
        held = "".join(self._held)
        self._held.clear()
        self._mark = None
        return held

    def mark(self) -> None:
        self._mark = len(self._held)

    def drop_behind_mark(self) -> None:
        """Forget the blanks held since `mark`, unless text has come since."""
        if self._mark is not None:
            del self._held[self._mark :]
            self._mark = None


class StrayText:
    """Text inside a call that belongs to no value; kept until the call is closed."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blanks = _TrailingBlanks()

    def push(self, text: str) -> None:
        self._parts.append(self._blanks.push(text))

    def end(self) -> None:
        """A tag of the call came; the blanks in front of it are the format's."""
        self._blanks.take()

    def take(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        return text
