"""The model's output to reasoning, content and tool calls, while it is being written.

    output := REASONING "</think>" CONTENT          CONTENT := (text | block | invoke)*
    block  := "<minimax:tool_call>" invoke* "</minimax:tool_call>"
    invoke := `<invoke name="NAME">` (`<parameter name="KEY">` VALUE "</parameter>")* "</invoke>"

The format has no escapes, so some places need a rule. Each looks a bounded distance ahead, and none
depends on how the output was cut into pieces:

- The four markers count by token id when ids are given; the same letters in ordinary tokens are
  text. A block begins only where `<minimax:tool_call>` is followed by a whole `<invoke name=...>`;
  otherwise its text stays where it is. In reasoning such a block ends the reasoning.
- `</think>` outside reasoning is dropped unless `<think>` was written there before it. `<think>`
  opens reasoning at the start of content, behind it it is text.
- A VALUE ends at `</parameter>` followed by another tag of the format, or by the end; at
  `</invoke>` followed by the next `<invoke`, the end of the block or the end; at the end of the
  block followed by another block or the end; and at `<parameter name=...>` when the tool's schema
  has that key and it has not been given. Anything else in a VALUE is text, kept as it is.
- The first value of a key counts. A second one, text between parameters, calls of tools that were
  not offered and calls beyond the limit become content: nothing the model said is lost. Content
  never comes between a ToolCallStart and the end of its arguments.
- Cut off by the end: an open string and the object are closed; a tag cut off between parameters is
  dropped; a call whose name is not complete is text.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from m2serve.chat.arguments import ArgumentsWriter
from m2serve.chat.channels import Channels, StrayText
from m2serve.chat.coercion import Coercer
from m2serve.chat.control import ControlTokens
from m2serve.chat.events import (
    Event,
    ParsedOutput,
    ToolArgumentsDelta,
    ToolCallStart,
    coalesce,
    fold,
)
from m2serve.chat.markers import (
    M_CALL_END,
    M_CALL_START,
    M_THINK_END,
    M_THINK_START,
    MarkerScanner,
)
from m2serve.chat.reader import OutputReader
from m2serve.chat.reasoning_tokens import ReasoningCounter
from m2serve.chat.tags import Incomplete, OpenTag, close_tag, open_tag
from m2serve.chat.tools import Tool

_MARKER = re.compile(f"[{M_THINK_START}{M_THINK_END}{M_CALL_START}{M_CALL_END}]")
_MARKER_OR_TAG = re.compile(f"[<{M_THINK_START}{M_THINK_END}{M_CALL_START}{M_CALL_END}]")
_CALL_MARKER_OR_TAG = re.compile(f"[<{M_CALL_START}{M_CALL_END}]")


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ParserOptions:
    """`allow_tool_calls` False (tool_choice "none") leaves calls in the text as written.

    `allow_unknown_tools` takes calls of tools that were not offered. `keep_think` is the reasoning
    parser `minimax_m2_append_think`: reasoning stays in content between its tags.
    """

    starts_in_reasoning: bool = True
    allow_tool_calls: bool = True
    allow_unknown_tools: bool = False
    keep_think: bool = False
    max_tool_calls: int = 128
    new_call_id: Callable[[], str] = new_call_id


class OutputParser:
    """Parses one answer. With `control`, push one id at a time with the text it added.

    Without `control`, push text cut anywhere. Work is linear in the output; no more than a
    kilobyte or so is held back, values that are not strings apart.
    """

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        options: ParserOptions | None = None,
        control: ControlTokens | None = None,
    ) -> None:
        self._options = options = options or ParserOptions()
        self._tools = {tool.name: tool for tool in tools}
        self._finds_calls = options.allow_tool_calls and bool(tools or options.allow_unknown_tools)
        self._scanner = MarkerScanner(control)
        self._reader = OutputReader()
        self._events: list[Event] = []
        in_reasoning = options.starts_in_reasoning
        self._channels = Channels(
            self._events, in_reasoning=in_reasoning, keep_think=options.keep_think
        )
        self._counter = ReasoningCounter(control, in_reasoning=in_reasoning)
        self._step: Callable[[], None] = self._step_text
        self._num_open_thinks = 0  # `<think>` shown as text, whose `</think>` is text, too
        self._in_block = False
        self._num_calls = 0
        self._writer: ArgumentsWriter | None = None  # None: the call is shown as content
        self._is_repeated = False  # the open parameter's key came before
        self._strays = StrayText()

    def push(self, text: str, token_id: int | None = None) -> list[Event]:
        """What became certain with this text. `token_id` is the id the text came from.

        In a parser with `control`, text without an id is ordinary text.
        """
        scanned = self._scanner.push(text, token_id)
        self._counter.push(token_id, begins_block=M_CALL_START in scanned)
        self._reader.append(scanned)
        with contextlib.suppress(Incomplete):
            self._run()
        return self._take_events()

    def finish(self) -> list[Event]:
        """The rest, at the end of the output; every string and object is closed."""
        self._reader.append(self._scanner.finish())
        self._reader.final = True
        self._run()
        if self._step == self._step_value:
            self._end_value(self._reader.at)
        if self._step == self._step_body:
            self._close_call(self._reader.at)
        self._channels.finish()
        return self._take_events()

    @property
    def num_reasoning_tokens(self) -> int:
        """Ids that were reasoning, markers not counted; 0 without ids."""
        return self._counter.num_tokens

    def _run(self) -> None:
        while not self._reader.is_empty:
            self._step()

    def _take_events(self) -> list[Event]:
        events = coalesce(self._events)
        self._events.clear()
        return events

    # Reasoning and content

    def _step_text(self) -> None:
        reader = self._reader
        looks_for_tags = self._finds_calls and not self._channels.in_reasoning
        self._channels.push(reader.take_until(_MARKER_OR_TAG if looks_for_tags else _MARKER))
        char = reader.char
        if char == M_THINK_START:
            self._think_start()
        elif char == M_THINK_END:
            self._think_end()
        elif char == M_CALL_START and self._finds_calls:
            self._open_call(reader.block(reader.at), in_new_block=True)
        elif char == M_CALL_END and self._in_block:
            self._in_block = False
            reader.take_one()
            self._channels.end_block()
        elif char == "<":
            self._open_call(reader.open_tag(reader.at, "invoke"), in_new_block=False)
        elif char:
            self._channels.push(reader.take_one())

    def _think_start(self) -> None:
        text = self._reader.take_one()
        if self._channels.in_reasoning or not (self._channels.has_content or self._num_calls):
            self._counter.begin()
            self._channels.begin_reasoning()
        else:
            self._num_open_thinks += 1
            self._channels.push(text)

    def _think_end(self) -> None:
        text = self._reader.take_one()
        if self._channels.in_reasoning:
            self._counter.end()
            self._channels.end_reasoning()
        elif self._num_open_thinks:
            self._num_open_thinks -= 1
            self._channels.push(text)

    # A call

    def _open_call(self, tag: OpenTag | None, *, in_new_block: bool) -> None:
        if tag is None:
            self._channels.push(self._reader.take_one())
            return
        if self._channels.in_reasoning:
            self._counter.end_at_block()
            self._channels.end_reasoning()
        text = self._reader.take(tag.end)
        self._step = self._step_body
        is_known = tag.name in self._tools or self._options.allow_unknown_tools
        if is_known and self._num_calls < self._options.max_tool_calls:
            self._in_block = True
            self._start_call(tag.name)
        else:
            self._in_block = self._in_block and not in_new_block
            self._writer = None
            self._channels.push(text)

    def _start_call(self, name: str) -> None:
        tool = self._tools.get(name)
        self._writer = ArgumentsWriter(Coercer(tool.parameters if tool else {}))
        self._channels.begin_call()
        self._events.append(ToolCallStart(self._num_calls, self._options.new_call_id(), name))
        self._num_calls += 1

    def _step_body(self) -> None:
        """Between parameters."""
        try:
            self._read_body()
        except Incomplete:
            if not self._reader.final:
                raise
            self._structure(self._reader.take(len(self._reader.text)))

    def _read_body(self) -> None:
        reader, char = self._reader, self._reader.char
        if char == "<":
            tag = open_tag(reader.text, reader.at, "parameter")
            if tag is not None:
                self._begin_value(tag)
                return
            end = close_tag(reader.text, reader.at, "invoke")
            if end is not None:
                self._close_call(end)
                return
        if self._lacks_close(char):
            self._close_call(reader.at)
        else:
            self._stray(reader.take_until(_CALL_MARKER_OR_TAG, skip=1))

    def _lacks_close(self, char: str) -> bool:
        """Whether `</invoke>` should stand here."""
        reader = self._reader
        if char == M_CALL_START:
            return reader.is_followed(reader.at + 1, ("invoke",), "")
        if char == "<":
            return open_tag(reader.text, reader.at, "invoke") is not None
        return char == M_CALL_END

    def _close_call(self, end: int) -> None:
        self._structure(self._reader.take(end))
        self._step = self._step_text
        if self._writer is not None:
            self._arguments(self._writer.close())
            self._channels.push(self._strays.take())
            self._channels.end_call()

    # A value

    def _begin_value(self, tag: OpenTag) -> None:
        text = self._reader.take(tag.end)
        self._step = self._step_value
        self._is_repeated = self._writer is not None and self._writer.has(tag.name)
        if self._is_repeated:
            self._stray(text)
            return
        self._structure(text)
        if self._writer is not None:
            self._arguments(self._writer.begin(tag.name))

    def _step_value(self) -> None:
        self._value_text(self._reader.take_until(_CALL_MARKER_OR_TAG))
        if self._reader.is_empty:
            return
        end = self._value_end()
        if end is None:
            self._value_text(self._reader.take_one())
        else:
            self._end_value(end)

    def _value_end(self) -> int | None:
        """Where the call goes on, when the value ends at the next character."""
        reader, start = self._reader, self._reader.at
        if reader.char == M_CALL_END:
            return start if reader.is_followed(start + 1, (), M_CALL_START) else None
        end = reader.close_tag(start, "parameter")
        if end is not None:
            words = ("parameter", "/invoke", "invoke")
            return end if reader.is_followed(end, words, M_CALL_START + M_CALL_END) else None
        end = reader.close_tag(start, "invoke")
        if end is not None:
            return start if reader.is_followed(end, ("invoke",), M_CALL_END) else None
        tag = reader.open_tag(start, "parameter")
        is_next = tag is not None and self._writer is not None and self._writer.wants(tag.name)
        return start if is_next else None

    def _end_value(self, end: int) -> None:
        self._step = self._step_body
        text = self._reader.take(end)
        if self._is_repeated:
            self._is_repeated = False
            self._stray(text)
            return
        self._structure(text)
        if self._writer is not None:
            self._arguments(self._writer.end())

    # Where the text of a call goes

    def _value_text(self, text: str) -> None:
        if self._writer is None or self._is_repeated:
            self._stray(text)
        else:
            self._arguments(self._writer.text(text))

    def _structure(self, text: str) -> None:
        """Tags and blanks between them; of a call that is content they are shown."""
        self._strays.end()
        if self._writer is None:
            self._channels.push(text)

    def _stray(self, text: str) -> None:
        if self._writer is None:
            self._channels.push(text)
        else:
            self._strays.push(text)

    def _arguments(self, fragment: str) -> None:
        if fragment:
            self._events.append(ToolArgumentsDelta(self._num_calls - 1, fragment))


def parse_output(parser: OutputParser, pieces: Iterable[tuple[str, int | None]]) -> ParsedOutput:
    """A whole answer: exactly what streaming these pieces adds up to."""
    events = [event for text, token_id in pieces for event in parser.push(text, token_id)]
    return fold([*events, *parser.finish()])
