"""The form a client asks its answer to have, from OpenAI's and vLLM's fields.

    response_format      {"type": "text" | "json_object" | "json_schema", "json_schema": {"schema"}}
    structured_outputs   {"json" | "json_object" | "regex" | "choice" | "grammar": ...}
    guided_json, guided_regex, guided_choice, guided_grammar: the older names of the same

The form always holds, so `strict` changes nothing. Thinking is not part of an answer: behind a
prompt that ends in it the form begins after `</think>` and the two line breaks that M2 writes
there, which are demanded, because the parser takes exactly them off again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from m2serve.chat.control import ControlTokens
from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.request import EngineInfo, StructuredKind, StructuredOutput
from m2serve.engine.structured_output import check_structured_output
from m2serve.errors import RequestError
from m2serve.server.protocol import GenerationFields

_BEHIND_THINKING = "\n\n"
# With no content before it, a call stands on a line of its own.
BEFORE_CALL = "\n\n\n"
_KINDS: Mapping[str, StructuredKind] = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
_GUIDED = ("json", "regex", "choice", "grammar")
# Settings of vLLM's backends that are accepted in the position they have here.
_SETTINGS: Mapping[str, Callable[[Any], bool]] = {
    "disable_any_whitespace": lambda value: value is False,
    "disable_additional_properties": lambda value: value is False,
}
_Asked = tuple[StructuredKind, Any, str]


async def structured_output(fields: GenerationFields, info: EngineInfo) -> StructuredOutput | None:
    """What is asked for, checked unless the engine has rules of its own. Raises RequestError."""
    asked = [*_response_format(fields.response_format), *_structured_outputs(fields)]
    if not asked:
        return None
    if len(asked) > 1:
        raise RequestError(
            f"{asked[0][2]} and {asked[1][2]} both say what form the answer has; send one of them",
            param=asked[1][2],
        )
    kind, value, param = asked[0]
    output = StructuredOutput(kind=kind, text=_text(kind, value, param))
    if not info.checks_structured_output:
        await asyncio.to_thread(check_structured_output, output, param)
    return output


def behind_thinking(
    output: StructuredOutput, tokenizer: Tokenizer, *, in_thinking: bool, may_call: bool = False
) -> StructuredOutput:
    """The same with the ids between which it holds; `may_call` lets a tool call come instead."""
    if may_call:
        output = replace(output, free_token_ids=(tokenizer.control.call_start,))
    if not in_thinking:
        return output
    before_call = tokenizer.encode(BEFORE_CALL)
    if may_call and len(before_call) == 1:
        output = replace(output, free_prefix_token_ids=tuple(before_call))
    return replace(
        output,
        after_token_ids=(tokenizer.control.think_end,),
        prefix_token_ids=tuple(tokenizer.encode(_BEHIND_THINKING)),
    )


def ends_in_thinking(prompt: Sequence[int], control: ControlTokens) -> bool:
    """Whether the last mark of a prompt of ids opens a think block."""
    marks = (control.think_start, control.think_end, control.turn_start, control.turn_end)
    last = next((token_id for token_id in reversed(prompt) if token_id in marks), None)
    return last == control.think_start


def _response_format(value: Mapping[str, Any] | None) -> list[_Asked]:
    kind = "text" if value is None else value.get("type")
    if value is None or kind == "text":
        return []
    if kind == "json_object":
        return [("json_object", True, "response_format")]
    if kind != "json_schema":
        raise RequestError(
            f"response_format has the type {str(kind)[:80]!r}; text, json_object and json_schema "
            "are supported",
            param="response_format.type" if kind is not None else "response_format",
            code="unsupported_field",
        )
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    param = "response_format.json_schema.schema"
    if not isinstance(schema, dict):
        raise RequestError(f"{param} is missing or no object", param=param)
    return [("json_schema", schema, param)]


def _structured_outputs(fields: GenerationFields) -> list[_Asked]:
    asked: list[_Asked] = []
    for name, value in (fields.structured_outputs or {}).items():
        param = f"structured_outputs.{name[:80]}"
        if value is None or (name in _SETTINGS and _SETTINGS[name](value)):
            continue
        if name not in _KINDS:
            raise RequestError(
                f"{param} is not supported; {', '.join(_KINDS)} are",
                param=param,
                code="unsupported_field",
            )
        asked.append((_KINDS[name], value, param))
    for name in _GUIDED:
        value = getattr(fields, f"guided_{name}")
        if value is not None:
            asked.append((_KINDS[name], value, f"guided_{name}"))
    if fields.structured_outputs is not None and not asked:
        raise RequestError(
            f"structured_outputs says no form; it needs one of {', '.join(_KINDS)}",
            param="structured_outputs",
        )
    return asked


def _text(kind: StructuredKind, value: Any, param: str) -> str:
    """As StructuredOutput has it."""
    if kind == "json_schema" and isinstance(value, str):
        value = _decoded(value)
    if kind == "json_object" and value is True:
        return ""
    if kind == "json_schema" and isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    if kind == "choice" and _is_choice(value):
        return msgspec.json.encode(value).decode()
    if kind in ("regex", "grammar") and isinstance(value, str) and value:
        return value
    wanted = {
        "json_object": "true",
        "json_schema": "a JSON schema, as an object or as text",
        "choice": "a list of strings that have characters",
    }.get(kind, "a text")
    raise RequestError(f"{param} has to be {wanted}", param=param)


def _is_choice(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _decoded(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
