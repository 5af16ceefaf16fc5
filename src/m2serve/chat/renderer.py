"""MiniMax-M2's prompt, written out.

    prompt    := BOS START "system\\n" SYSTEM [TOOLS] END {turn} [START "ai\\n<think>\\n"]
    user      := START "user\\n" TEXT END
    assistant := START "ai\\n" ["<think>\\n" R "\\n</think>\\n\\n"] CONTENT [CALLS] END
    results   := START "tool" {"\\n<response>" TEXT "</response>"} END

Reasoning is kept only behind the last user turn. Source: the chat templates published with M2,
M2.1, M2.5 and M2.7, which agree on everything but the default identity.

Only the strings written in this file are trusted; everything from a message, a tool or the operator
is untrusted text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m2serve.chat.control import (
    BOS,
    CALL_END,
    CALL_START,
    THINK_END,
    THINK_START,
    TURN_END,
    TURN_START,
)
from m2serve.chat.identity import DEFAULT_IDENTITY
from m2serve.chat.messages import Assistant, Conversation, System, ToolResult, Turn, User
from m2serve.chat.tokenizer import Segment
from m2serve.chat.tools import Tool
from m2serve.errors import RequestError

_TOOLS_HEAD = """

# Tools
You may call one or more tools to assist with the user query.
Here are the tools available in JSONSchema format:

<tools>
"""
_TOOLS_TAIL = f"""</tools>

When making tool calls, use XML format to invoke tools and pass parameters:

{CALL_START}
<invoke name="tool-name-1">
<parameter name="param-key-1">param-value-1</parameter>
<parameter name="param-key-2">param-value-2</parameter>
...
</invoke>
{CALL_END}"""
_END = TURN_END + "\n"
_GENERATION_PROMPT = f"{TURN_START}ai\n{THINK_START}\n"


def render(
    conversation: Conversation,
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    model_identity: str = DEFAULT_IDENTITY,
) -> list[Segment]:
    """The prompt as segments for `Tokenizer.encode_segments`; their texts joined are the prompt.

    `continue_final_message` leaves the last assistant turn open, inside its reasoning when it has
    no content yet. Raises RequestError when that and `add_generation_prompt` exclude each other or
    the last turn does not allow what is asked.
    """
    turns = conversation.turns
    _check_end(turns, add_generation_prompt, continue_final_message)
    segments = [*_system(conversation.system, tools, model_identity)]
    last_user = max((i for i, turn in enumerate(turns) if isinstance(turn, User)), default=-1)
    for index, turn in enumerate(turns):
        if isinstance(turn, User):
            segments += [_ours(f"{TURN_START}user\n"), Segment(turn.text), _ours(_END)]
        elif isinstance(turn, ToolResult):
            segments += _result(turn, turns, index)
        elif continue_final_message and index == len(turns) - 1:
            segments += _open_assistant(turn)
        else:
            segments += _assistant(turn, keep_reasoning=index > last_user)
    if add_generation_prompt:
        segments.append(_ours(_GENERATION_PROMPT))
    return segments


def ends_in_reasoning(segments: Sequence[Segment]) -> bool:
    """Whether the model's output begins inside a think block."""
    for segment in reversed(segments):
        if segment.trusted:
            start = segment.text.rfind(THINK_START)
            if start != -1 or THINK_END in segment.text or TURN_START in segment.text:
                return start > segment.text.rfind(THINK_END)
    return False


def _ours(text: str) -> Segment:
    return Segment(text, trusted=True)


def _check_end(turns: Sequence[Turn], generate: bool, go_on: bool) -> None:
    last = turns[-1] if turns else None
    if generate and go_on:
        raise RequestError(
            "add_generation_prompt and continue_final_message exclude each other; set one to false",
            param="continue_final_message",
        )
    if go_on and not isinstance(last, Assistant):
        raise RequestError(
            "continue_final_message needs an assistant message at the end of messages",
            param="continue_final_message",
        )
    if (generate or go_on) and isinstance(last, Assistant) and last.tool_calls:
        raise RequestError(
            "the last message calls tools; add a tool message with the result of each call",
            param="messages",
        )


def _system(system: System, tools: Sequence[Tool], identity: str) -> Iterator[Segment]:
    yield _ours(f"{BOS}{TURN_START}system\n")
    yield Segment(system.text or identity)
    if system.current_date:
        yield Segment(f"\nCurrent date: {system.current_date}")
    if system.current_location:
        yield Segment(f"\nCurrent location: {system.current_location}")
    if tools:
        yield _ours(_TOOLS_HEAD)
        for tool in tools:
            yield Segment(f"<tool>{tool.definition}</tool>\n")
        yield _ours(_TOOLS_TAIL)
    yield _ours(_END)


def _result(turn: ToolResult, turns: Sequence[Turn], index: int) -> Iterator[Segment]:
    """Results in a row share one turn; the one before and the one behind say where it ends."""
    if index == 0 or not isinstance(turns[index - 1], ToolResult):
        yield _ours(f"{TURN_START}tool")
    yield Segment(f"\n<response>{turn.text}</response>")
    if index + 1 == len(turns) or not isinstance(turns[index + 1], ToolResult):
        yield _ours(_END)


def _assistant(turn: Assistant, *, keep_reasoning: bool) -> Iterator[Segment]:
    yield _ours(f"{TURN_START}ai\n")
    if turn.reasoning and keep_reasoning:
        yield from _reasoning(turn.reasoning)
    yield Segment(turn.content)
    if turn.tool_calls:
        yield _ours(f"\n{CALL_START}\n")
        for call in turn.tool_calls:
            yield Segment(_invoke(call.name, call.arguments))
        yield _ours(CALL_END)
    yield _ours(_END)


def _open_assistant(turn: Assistant) -> Iterator[Segment]:
    yield _ours(f"{TURN_START}ai\n")
    if turn.reasoning and turn.content:
        yield from _reasoning(turn.reasoning)
    elif not turn.content:
        yield _ours(f"{THINK_START}\n")
    yield Segment(turn.content or turn.reasoning)


def _reasoning(text: str) -> Iterator[Segment]:
    yield _ours(f"{THINK_START}\n")
    yield Segment(text)
    yield _ours(f"\n{THINK_END}\n\n")


def _invoke(name: str, arguments: Mapping[str, Any]) -> str:
    """A string stands as it is, everything else as JSON; the format has no escapes."""
    lines = [f'<invoke name="{name}">\n']
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f'<parameter name="{key}">{text}</parameter>\n')
    lines.append("</invoke>\n")
    return "".join(lines)
