"""One answer from token ids to events: detokenizer, stop strings and parser in a row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from m2serve.chat.detokenizer import Detokenizer
from m2serve.chat.events import Event, coalesce
from m2serve.chat.parser import OutputParser
from m2serve.chat.stop import StopMatcher
from m2serve.chat.tokenizer import Tokenizer


class AnswerStream:
    """Push the ids the engine yields, in any portions; `finish` once at the end.

    Stop strings are looked for in everything the model writes: reasoning, markers and calls, too.
    When `matched_stop` is set the answer is over, whatever the engine still sends.
    """

    def __init__(self, tokenizer: Tokenizer, parser: OutputParser, stop: StopMatcher) -> None:
        """The parser was made with `tokenizer.control`."""
        self._detokenizer = Detokenizer(tokenizer, skip_special=True)
        self._parser = parser
        self._stop = stop
        self._waiting: deque[tuple[str, int | None]] = deque()
        self._num_released = 0  # characters of `_waiting` that no stop string can begin in

    @property
    def matched_stop(self) -> str | None:
        return self._stop.matched

    @property
    def num_reasoning_tokens(self) -> int:
        return self._parser.num_reasoning_tokens

    def push(self, token_ids: Iterable[int]) -> list[Event]:
        events: list[Event] = []
        for token_id in token_ids:
            if self.matched_stop is None:
                text = self._detokenizer.push(token_id)
                self._waiting.append((text, token_id))
                self._num_released += len(self._stop.push(text))
                events += self._release()
        return coalesce(events)

    def finish(self) -> list[Event]:
        events: list[Event] = []
        if self.matched_stop is None:
            rest = self._detokenizer.finish()
            self._waiting.append((rest, None))
            self._num_released += len(self._stop.push(rest)) + len(self._stop.finish())
            events += self._release()
        return coalesce([*events, *self._parser.finish()])

    def _release(self) -> list[Event]:
        """Whole ids go on as they are; the one a stop string cuts goes on as plain text."""
        events: list[Event] = []
        while self._waiting and len(self._waiting[0][0]) <= self._num_released:
            text, token_id = self._waiting.popleft()
            self._num_released -= len(text)
            events += self._parser.push(text, token_id)
        if self.matched_stop is not None and self._waiting:
            events += self._parser.push(self._waiting[0][0][: self._num_released])
            self._waiting.clear()
        return events
