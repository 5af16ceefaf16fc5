"""A chat answer, whole or streamed, in one form that can be compared. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from m2serve.client import as_list, as_object, as_text

_REASONING_FIELDS = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Call:
    """A tool call as sent; `arguments` is the JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """`status` 200, or the HTTP status with `error`; 0: no answer at all.

    Token counts are -1 when the endpoint does not say. `ttft_s` is the time to the first piece of
    text. `num_argument_deltas` counts the pieces that arguments came in.
    """

    status: int
    error: str = ""
    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1
    ttft_s: float = 0.0
    num_argument_deltas: int = 0

    @property
    def text(self) -> str:
        """Reasoning and content, as the model wrote them one behind the other."""
        return f"{self.reasoning}\n{self.content}".strip()


def whole_answer(body: Mapping[str, Any], time_s: float) -> Answer:
    """The first choice of a chat completion; fields of a wrong type count as absent."""
    choice = _first(body.get("choices"))
    message = as_object(choice.get("message"))
    answer = Answer(
        200,
        reasoning=_reasoning(message),
        content=as_text(message.get("content")),
        calls=tuple(_call(call) for call in as_list(message.get("tool_calls"))),
        finish_reason=as_text(choice.get("finish_reason")),
        ttft_s=time_s,
    )
    return with_usage(answer, body.get("usage"))


def with_usage(answer: Answer, usage: Any) -> Answer:
    """With the token counts of an OpenAI usage object."""
    usage = as_object(usage)
    details = as_object(usage.get("prompt_tokens_details"))
    return replace(
        answer,
        prompt_tokens=_count(usage.get("prompt_tokens"), answer.prompt_tokens),
        completion_tokens=_count(usage.get("completion_tokens"), answer.completion_tokens),
        cached_tokens=_count(details.get("cached_tokens"), answer.cached_tokens),
    )


@dataclass
class StreamedAnswer:
    """An answer that grows by chunks; `finish` gives what has come."""

    start_s: float
    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish_reason: str = ""
    usage: Any = None
    first_s: float = 0.0
    num_argument_deltas: int = 0

    def add(self, data: Mapping[str, Any], time_s: float) -> None:
        """One event; those without choices carry usage."""
        self.usage = data.get("usage") or self.usage
        choice = _first(data.get("choices"))
        delta = as_object(choice.get("delta"))
        self.reasoning.append(_reasoning(delta))
        self.content.append(as_text(delta.get("content")))
        for call in as_list(delta.get("tool_calls")):
            self._add_call(as_object(call))
        self.finish_reason = as_text(choice.get("finish_reason")) or self.finish_reason
        if not self.first_s and (self.reasoning[-1] or self.content[-1] or self.calls):
            self.first_s = time_s

    def finish(self) -> Answer:
        answer = Answer(
            200,
            reasoning="".join(self.reasoning),
            content="".join(self.content),
            calls=tuple(Call(**self.calls[index]) for index in sorted(self.calls)),
            finish_reason=self.finish_reason,
            ttft_s=max(self.first_s - self.start_s, 0.0),
            num_argument_deltas=self.num_argument_deltas,
        )
        return with_usage(answer, self.usage)

    def _add_call(self, delta: dict[str, Any]) -> None:
        index = delta.get("index")
        index = index if isinstance(index, int) else 0
        call = self.calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        function = as_object(delta.get("function"))
        call["id"] = as_text(delta.get("id")) or call["id"]
        call["name"] += as_text(function.get("name"))
        call["arguments"] += as_text(function.get("arguments"))
        self.num_argument_deltas += bool(as_text(function.get("arguments")))


def _reasoning(message: Mapping[str, Any]) -> str:
    return next((text for name in _REASONING_FIELDS if (text := as_text(message.get(name)))), "")


def _call(call: Any) -> Call:
    said = as_object(call)
    function = as_object(said.get("function"))
    name, arguments = function.get("name"), function.get("arguments")
    return Call(as_text(said.get("id")), as_text(name), as_text(arguments))


def _first(choices: Any) -> dict[str, Any]:
    return as_object(choices[0]) if isinstance(choices, list) and choices else {}


def _count(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
