"""What clients put into a message, read into plain text and plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from m2serve.chat.control import THINK_END, THINK_START
from m2serve.errors import RequestError

MAX_JSON_DEPTH = 64


def text_of(content: Any, param: str) -> str:
    """Text of a string, null or a list of text parts (joined without a separator, as M2 does)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestError(
            f"{param} is a {type(content).__name__}; a string or a list of text parts is needed",
            param=param,
        )
    return "".join(_part_text(part, f"{param}[{index}]") for index, part in enumerate(content))


def reasoning_and_content(message: Mapping[str, Any], param: str) -> tuple[str, str]:
    """Reasoning and content of an assistant message.

    Reasoning is the first that is not empty of `reasoning_content`, `reasoning`,
    `reasoning_details`, and a `<think>` block at the very start of the content.
    """
    content = text_of(message.get("content"), f"{param}.content")
    for field in ("reasoning_content", "reasoning"):
        value = message.get(field)
        if value is not None and not isinstance(value, str):
            raise RequestError(
                f"{param}.{field} is a {type(value).__name__}; a string is needed",
                param=f"{param}.{field}",
            )
        if value:
            return value, content
    details = _details_text(message.get("reasoning_details"), f"{param}.reasoning_details")
    if details:
        return details, content
    return _split_inline(content)


def arguments_of(value: Any, param: str) -> dict[str, Any]:
    """Arguments of a tool call: an object, or a string that holds one as JSON; empty is {}."""
    if isinstance(value, str):
        value = _parse_json(value, param) if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(
            f"{param} is a JSON {type(value).__name__}; an object is needed", param=param
        )
    check_json(value, param)
    return dict(value)


def check_json(value: Any, param: str) -> None:
    """Raise RequestError unless `value` is finite JSON of at most MAX_JSON_DEPTH levels."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for node in level for child in _children(node, param)]
        if not level:
            return
    raise RequestError(f"{param} is nested deeper than {MAX_JSON_DEPTH} levels", param=param)


def _children(node: Any, param: str) -> list[Any]:
    if isinstance(node, Mapping):
        if not all(isinstance(key, str) for key in node):
            raise RequestError(f"{param} has a key that is not a string", param=param)
        return list(node.values())
    if isinstance(node, list | tuple):
        return list(node)
    if isinstance(node, float) and not math.isfinite(node):
        raise RequestError(f"{param} holds {node}, which JSON cannot express", param=param)
    if node is not None and not isinstance(node, str | int | float):
        raise RequestError(f"{param} holds a {type(node).__name__}, which is not JSON", param=param)
    return []


def _part_text(part: Any, param: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise RequestError(
            f"{param} is a {type(part).__name__}; a text part is needed", param=param
        )
    kind = part.get("type")
    if kind != "text":
        raise RequestError(
            f"{param} has type {str(kind)[:80]!r}; MiniMax-M2 reads text parts only", param=param
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise RequestError(f"{param}.text is missing or not a string", param=f"{param}.text")
    return text


def _details_text(details: Any, param: str) -> str:
    if details is None:
        return ""
    if not isinstance(details, list | tuple):
        raise RequestError(f"{param} is a {type(details).__name__}; a list is needed", param=param)
    texts = []
    for index, detail in enumerate(details):
        text = detail.get("text") if isinstance(detail, Mapping) else None
        if text is not None and not isinstance(text, str):
            raise RequestError(
                f"{param}[{index}].text is not a string", param=f"{param}[{index}].text"
            )
        texts.append(text or "")
    return "".join(texts)


def _split_inline(content: str) -> tuple[str, str]:
    start = content.lstrip()
    if not start.startswith(THINK_START):
        return "", content
    reasoning, end, rest = start.removeprefix(THINK_START).partition(THINK_END)
    return (reasoning.strip("\n"), rest.strip("\n")) if end else ("", content)


def _parse_json(text: str, param: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{param} is not valid JSON ({error}); send the arguments as a JSON object", param=param
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
