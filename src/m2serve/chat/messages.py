"""A conversation in one canonical form, whatever shape the client sent it in.

`normalize` takes OpenAI-style messages. The forms of one thing (string or list content, arguments
as text or object, reasoning under any of its names) become equal, so equal conversations give equal
prompts and the prefix cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2serve.chat.content import arguments_of, reasoning_and_content, text_of
from m2serve.errors import RequestError

MAX_MESSAGES = 16384
MAX_TOOL_CALLS = 512

_REMINDER_START = "<system-reminder>"
_REMINDER_END = "</system-reminder>"


@dataclass(frozen=True)
class System:
    """`text` "" means: the model's default identity."""

    text: str = ""
    current_date: str = ""
    current_location: str = ""


@dataclass(frozen=True)
class User:
    text: str


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is a JSON object; `id` is the client's and never rendered."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Assistant:
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ToolResult:
    tool_call_id: str
    text: str


Turn = User | Assistant | ToolResult


@dataclass(frozen=True)
class Conversation:
    """Results stand behind the assistant turn that called, in the order of its calls."""

    system: System
    turns: tuple[Turn, ...]


def normalize(messages: Sequence[Any]) -> Conversation:
    """Read OpenAI-style messages.

    Leading system and developer messages are merged. A later one is folded, as a system reminder,
    into the user message or tool result before it; after an assistant message without calls it
    goes to the front of the next user message, or becomes one when something else follows. Results
    are matched to calls by id. Only the last message may hold calls without results.

    Raises RequestError whose `param` is the path of the offending field.
    """
    if not isinstance(messages, list | tuple):
        raise RequestError(
            f"messages is a {type(messages).__name__}; a list is needed", param="messages"
        )
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise RequestError(
            f"{len(messages)} messages were sent; 1 to {MAX_MESSAGES} are allowed", param="messages"
        )
    roles = [_role(message, index) for index, message in enumerate(messages)]
    num_leading = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    turns = _Turns()
    for index in range(num_leading, len(messages)):
        turns.add(roles[index], messages[index], index)
    return Conversation(_merge_system(messages[:num_leading]), turns.finish())


class _Turns:
    """The turns read so far, and what still waits for a place."""

    def __init__(self) -> None:
        self._turns: list[Assistant | _Draft] = []
        self._reminders: list[str] = []
        self._calls: tuple[ToolCall, ...] = ()
        self._calls_index = 0
        self._results: dict[int, _Draft] = {}  # position of the call -> its result
        self._last_result: _Draft | None = None

    def add(self, role: str, message: Mapping[str, Any], index: int) -> None:
        param = f"messages[{index}]"
        if role == "tool":
            self._add_result(message, param)
        elif role == "system":
            self._add_reminder(text_of(message.get("content"), f"{param}.content"))
        elif role == "user":
            self._close_calls()
            self._add_user(text_of(message.get("content"), f"{param}.content"))
        else:
            self._close_calls()
            self._flush_reminders()
            turn = _assistant(message, param)
            self._turns.append(turn)
            self._calls, self._calls_index = turn.tool_calls, index

    def finish(self) -> tuple[Turn, ...]:
        if self._results or self._reminders:
            self._close_calls()
        self._flush_reminders()
        return tuple(t.turn() if isinstance(t, _Draft) else t for t in self._turns)

    def _add_user(self, text: str) -> None:
        self._turns.append(_Draft([*map(_as_reminder, self._reminders), text]))
        self._reminders.clear()

    def _add_result(self, message: Mapping[str, Any], param: str) -> None:
        position = self._open_position(message.get("tool_call_id"), param)
        text = text_of(message.get("content"), f"{param}.content")
        result = _Draft([text, *map(_as_reminder, self._reminders)], self._calls[position])
        self._reminders.clear()
        self._results[position] = self._last_result = result

    def _open_position(self, id: Any, param: str) -> int:
        """Position of the first call without a result that has this id (any, for no id)."""
        if id is not None and not isinstance(id, str):
            raise RequestError(
                f"{param}.tool_call_id is a {type(id).__name__}; a string is needed",
                param=f"{param}.tool_call_id",
            )
        for position, call in enumerate(self._calls):
            if position not in self._results and (id is None or call.id == id):
                return position
        if any(call.id == id for call in self._calls):
            problem = f"a second result for tool call {id!r}"
        else:
            problem = f"a result for tool call {id!r}, which the assistant did not make just before"
        raise RequestError(f"{param} is {problem}; remove it", param=param)

    def _add_reminder(self, text: str) -> None:
        if not text:
            return
        last = self._turns[-1] if self._turns else None
        if self._last_result is not None:
            self._last_result.texts.append(_as_reminder(text))
        elif isinstance(last, _Draft):
            last.texts.append(_as_reminder(text))
        else:
            self._reminders.append(text)

    def _flush_reminders(self) -> None:
        if self._reminders:
            self._add_user("")

    def _close_calls(self) -> None:
        """Put the results behind their calls, in the order of the calls."""
        for position, call in enumerate(self._calls):
            if position not in self._results:
                raise RequestError(
                    f"messages[{self._calls_index}] calls {call.name!r} with id {call.id!r} but no "
                    "tool message answers it; add one directly behind",
                    param=f"messages[{self._calls_index}].tool_calls[{position}]",
                )
            self._turns.append(self._results[position])
        self._calls = ()
        self._results.clear()
        self._last_result = None


@dataclass
class _Draft:
    """A user turn, or the result of `call`, to which reminders may still be added."""

    texts: list[str]
    call: ToolCall | None = None

    def turn(self) -> User | ToolResult:
        text = "\n\n".join(text for text in self.texts if text)
        return User(text) if self.call is None else ToolResult(self.call.id, text)


def _role(message: Any, index: int) -> str:
    """ "system" (also for developer), "user", "assistant" or "tool"."""
    param = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(
            f"{param} is a {type(message).__name__}; an object is needed", param=param
        )
    role = message.get("role")
    if role == "developer":
        return "system"
    if role in ("system", "user", "assistant", "tool"):
        return str(role)
    advice = (
        "send it as role 'tool' with a tool_call_id"
        if role == "function"
        else ("one of system, developer, user, assistant, tool is needed")
    )
    raise RequestError(f"{param}.role is {str(role)[:80]!r}; {advice}", param=f"{param}.role")


def _assistant(message: Mapping[str, Any], param: str) -> Assistant:
    if message.get("function_call") is not None:
        raise RequestError(
            f"{param}.function_call is the retired form; send tool_calls",
            param=f"{param}.function_call",
        )
    reasoning, content = reasoning_and_content(message, param)
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise RequestError(
            f"{param}.tool_calls is a {type(calls).__name__}; a list is needed",
            param=f"{param}.tool_calls",
        )
    if len(calls) > MAX_TOOL_CALLS:
        raise RequestError(
            f"{param} has {len(calls)} tool calls; at most {MAX_TOOL_CALLS} are allowed",
            param=f"{param}.tool_calls",
        )
    tool_calls = tuple(
        _tool_call(call, f"{param}.tool_calls[{index}]") for index, call in enumerate(calls)
    )
    return Assistant(content, reasoning, tool_calls)


def _tool_call(call: Any, param: str) -> ToolCall:
    """Nested (`function.name`) or flat (`name`), as M2's template takes both."""
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestError(f"{param} is not an object with a function", param=param)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(
            f"{param}.function.name is {str(name)[:80]!r}; the name of a tool is needed",
            param=f"{param}.function.name",
        )
    id = call.get("id")
    if id is not None and not isinstance(id, str):
        raise RequestError(
            f"{param}.id is a {type(id).__name__}; a string is needed", param=f"{param}.id"
        )
    arguments = arguments_of(function.get("arguments"), f"{param}.function.arguments")
    return ToolCall(id or "", name, arguments)


def _merge_system(messages: Sequence[Mapping[str, Any]]) -> System:
    texts = [text_of(m.get("content"), f"messages[{i}].content") for i, m in enumerate(messages)]
    return System(
        "\n\n".join(text for text in texts if text),
        _first_string(messages, "current_date"),
        _first_string(messages, "current_location"),
    )


def _first_string(messages: Sequence[Mapping[str, Any]], field: str) -> str:
    for index, message in enumerate(messages):
        value = message.get(field)
        if value is not None and not isinstance(value, str):
            raise RequestError(
                f"messages[{index}].{field} is a {type(value).__name__}; a string is needed",
                param=f"messages[{index}].{field}",
            )
        if value:
            return value
    return ""


def _as_reminder(text: str) -> str:
    """Some clients already wrap what they put in the middle; one wrapping is enough."""
    stripped = text.strip()
    if stripped.startswith(_REMINDER_START) and stripped.endswith(_REMINDER_END):
        return stripped
    return f"{_REMINDER_START}\n{text}\n{_REMINDER_END}"
