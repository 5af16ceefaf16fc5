"""One choice of an answer as it grows: the engine's ids in, what the client sees out. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from m2serve.chat.detokenizer import Detokenizer
from m2serve.chat.events import ContentDelta, Event, ToolCallStart
from m2serve.chat.stop import StopMatcher
from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.request import EngineOutput, TokenLogprob
from m2serve.server.wire import FinishReason, StopReason


class Parser(Protocol):
    """`chat.parser.OutputParser`, or PlainText."""

    def push(self, text: str, token_id: int | None = None) -> list[Event]: ...
    def finish(self) -> list[Event]: ...
    @property
    def num_reasoning_tokens(self) -> int: ...


class PlainText:
    """The parser of plain completions: everything is content."""

    num_reasoning_tokens = 0

    def push(self, text: str, token_id: int | None = None) -> list[Event]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Event]:
        return []


@dataclass(frozen=True)
class StopRules:
    """`min_tokens` generated ids come before any stop string is looked for."""

    strings: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0


@dataclass
class ChoiceUpdate:
    """What one step of the engine means for one choice.

    `text_offsets[i]` is where the text of `token_ids[i]` starts, in characters from the start of
    the generated text. `finish_reason` is set in the last update, and only there.
    """

    events: list[Event] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)
    logprobs: list[list[TokenLogprob]] | None = None
    prompt_logprobs: list[list[TokenLogprob] | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: StopReason = None


class Choice:
    """`update` turns each output of the engine into a ChoiceUpdate.

    When an update has a finish_reason, the choice is complete, even if the engine would go on: a
    stop string matched, or the first tool call has ended and `max_tool_calls` is 1.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        parser: Parser,
        stop: StopRules,
        *,
        skip_special: bool = True,
        max_tool_calls: int | None = None,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
        self._eos = tokenizer.control.turn_end
        self._parser = parser
        self._stop = _StopFilter(stop)
        self._include_stop = stop.include_stop_str_in_output
        self._max_tool_calls = max_tool_calls
        self._num_tool_calls = 0
        self.num_tokens = 0
        self.num_cached_tokens = 0

    @property
    def num_reasoning_tokens(self) -> int:
        return self._parser.num_reasoning_tokens

    def update(self, output: EngineOutput) -> ChoiceUpdate:
        update = ChoiceUpdate(prompt_logprobs=output.prompt_logprobs)
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        for position, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            update.token_ids.append(token_id)
            update.text_offsets.append(self._detokenizer.num_chars)
            is_stop_token = (
                output.stop_token_id is not None and position == len(output.token_ids) - 1
            )
            if not is_stop_token or self._include_stop:
                self._push(self._detokenizer.push(token_id), token_id, update)
            if update.finish_reason is not None:
                break
        if output.logprobs is not None:
            update.logprobs = output.logprobs[: len(update.token_ids)]
        if output.finish_reason is not None and update.finish_reason is None:
            self._end(output, update)
        return update

    def _push(self, text: str, token_id: int | None, update: ChoiceUpdate) -> None:
        pieces = self._stop.push(text, token_id)
        for piece, id in pieces:
            self._add(self._parser.push(piece, id), update)
        if self._stop.matched is not None:
            self._finish("stop", self._stop.matched, update)

    def _end(self, output: EngineOutput, update: ChoiceUpdate) -> None:
        """The engine is done; a held piece of text may still complete a stop string."""
        rest = self._detokenizer.finish()
        if rest:
            self._push(rest, None, update)
        if update.finish_reason is not None:
            return
        for piece, id in self._stop.finish():
            self._add(self._parser.push(piece, id), update)
        assert output.finish_reason in ("stop", "length", "abort")
        stop_reason = None if output.stop_token_id == self._eos else output.stop_token_id
        self._finish(output.finish_reason, stop_reason, update)

    def _finish(self, reason: FinishReason, stop_reason: StopReason, update: ChoiceUpdate) -> None:
        self._add(self._parser.finish(), update)
        if update.finish_reason is None:
            # A stop string may have cut a call short, and a cut call must not look complete.
            cut = isinstance(stop_reason, str)
            called = reason == "stop" and self._num_tool_calls > 0 and not cut
            update.finish_reason = "tool_calls" if called else reason
            update.stop_reason = stop_reason

    def _add(self, events: Sequence[Event], update: ChoiceUpdate) -> None:
        """Take events up to the tool call that is one too many; that one ends the choice."""
        if update.finish_reason is not None:
            return
        for event in events:
            if isinstance(event, ToolCallStart):
                if self._num_tool_calls == self._max_tool_calls:
                    update.finish_reason = "tool_calls"
                    return
                self._num_tool_calls += 1
            update.events.append(event)


class _StopFilter:
    """Looks for stop strings and lets tokens pass whole, with the id each piece came from.

    The parser behind it reads control tokens by id, so a token is held until all of its text may
    be shown. The token a stop string begins in passes cut, as text without an id.
    """

    def __init__(self, rules: StopRules) -> None:
        self._rules = rules
        self._matcher = StopMatcher(
            rules.strings, include_stop_str_in_output=rules.include_stop_str_in_output
        )
        self._held: deque[tuple[str, int | None]] = deque()
        self._num_tokens = 0
        self._num_free_chars = 0

    @property
    def matched(self) -> str | None:
        return self._matcher.matched

    def push(self, text: str, token_id: int | None) -> list[tuple[str, int | None]]:
        if not self._rules.strings:
            return [(text, token_id)]
        self._num_tokens += 1
        if self._num_tokens <= self._rules.min_tokens:
            return [(text, token_id)]
        self._held.append((text, token_id))
        self._num_free_chars += len(self._matcher.push(text))
        return self._release()

    def finish(self) -> list[tuple[str, int | None]]:
        self._num_free_chars += len(self._matcher.finish())
        return self._release()

    def _release(self) -> list[tuple[str, int | None]]:
        released = []
        while self._held and len(self._held[0][0]) <= self._num_free_chars:
            text, token_id = self._held.popleft()
            self._num_free_chars -= len(text)
            released.append((text, token_id))
        if self.matched is not None and self._held and self._num_free_chars:
            released.append((self._held[0][0][: self._num_free_chars], None))
        if self.matched is not None:
            self._held.clear()
        return released
