"""What the parser says while the model speaks, and the whole answer those events add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True)
class ContentDelta:
    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """`index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolArgumentsDelta:
    """A piece of the arguments' JSON; the pieces of one index joined are one JSON object."""

    index: int
    json_fragment: str


Event = ReasoningDelta | ContentDelta | ToolCallStart | ToolArgumentsDelta


@dataclass(frozen=True)
class ParsedToolCall:
    """`arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ParsedOutput:
    """A whole answer; None where the model said nothing."""

    reasoning: str | None
    content: str | None
    tool_calls: tuple[ParsedToolCall, ...]


def fold(events: Iterable[Event]) -> ParsedOutput:
    """Add up the events of one answer."""
    reasoning: list[str] = []
    content: list[str] = []
    starts: list[ToolCallStart] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, ReasoningDelta):
            reasoning.append(event.text)
        elif isinstance(event, ContentDelta):
            content.append(event.text)
        elif isinstance(event, ToolCallStart):
            starts.append(event)
            arguments.append([])
        else:
            arguments[event.index].append(event.json_fragment)
    calls = tuple(
        ParsedToolCall(start.id, start.name, "".join(pieces))
        for start, pieces in zip(starts, arguments, strict=True)
    )
    return ParsedOutput("".join(reasoning) or None, "".join(content) or None, calls)


def coalesce(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbours of one kind joined; what one step of the engine yields."""
    runs: list[tuple[Event, list[str]]] = []
    for event in events:
        if runs and _same_stream(runs[-1][0], event):
            runs[-1][1].append(_text(event))
        else:
            runs.append((event, [_text(event)]))
    return [_with_text(first, "".join(texts)) for first, texts in runs]


def _same_stream(first: Event, event: Event) -> bool:
    if isinstance(first, ToolArgumentsDelta) and isinstance(event, ToolArgumentsDelta):
        return first.index == event.index
    return type(first) is type(event) and not isinstance(event, ToolCallStart)


def _text(event: Event) -> str:
    if isinstance(event, ToolCallStart):
        return ""
    return event.json_fragment if isinstance(event, ToolArgumentsDelta) else event.text


def _with_text(event: Event, text: str) -> Event:
    if isinstance(event, ToolArgumentsDelta):
        return ToolArgumentsDelta(event.index, text)
    return event if isinstance(event, ToolCallStart) else type(event)(text)
