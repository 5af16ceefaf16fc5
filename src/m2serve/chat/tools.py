"""Tools offered by a request: checked once, then only read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2serve.chat.content import check_json
from m2serve.errors import RequestError

MAX_TOOLS = 1024
MAX_NAME_CHARS = 256

NOT_IN_NAMES = frozenset("\"'<>\r\n")


@dataclass(frozen=True)
class Tool:
    """`definition` is the JSON the model sees; `parameters` the JSON schema of the arguments."""

    name: str
    definition: str
    parameters: Mapping[str, Any]


def parse_tools(tools: Sequence[Any] | None) -> tuple[Tool, ...]:
    """Read OpenAI-style tools; raises RequestError naming the field that is wrong."""
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        raise RequestError(f"tools is a {type(tools).__name__}; a list is needed", param="tools")
    if len(tools) > MAX_TOOLS:
        raise RequestError(
            f"{len(tools)} tools were sent; at most {MAX_TOOLS} are allowed", param="tools"
        )
    parsed: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        read = _parse_tool(tool, f"tools[{index}]")
        if read.name in parsed:
            raise RequestError(
                f"two tools are named {read.name!r}; names must differ",
                param=f"tools[{index}].function.name",
            )
        parsed[read.name] = read
    return tuple(parsed.values())


def _parse_tool(tool: Any, param: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise RequestError(f"{param} is a {type(tool).__name__}; an object is needed", param=param)
    kind = tool.get("type", "function")
    if kind != "function":
        raise RequestError(
            f"{param} has type {kind!r}; only 'function' tools are supported", param=f"{param}.type"
        )
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise RequestError(
            f"{param}.function is missing; put name and parameters there", param=f"{param}.function"
        )
    name = _name(function.get("name"), f"{param}.function.name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(
            f"{param}.function.parameters is a {type(parameters).__name__}; "
            "a JSON schema object is needed",
            param=f"{param}.function.parameters",
        )
    check_json(function, f"{param}.function")
    return Tool(name, json.dumps(function, ensure_ascii=False), parameters or {})


def _name(name: Any, param: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise RequestError(
            f"{param} is {str(name)[:80]!r}; a string of 1 to {MAX_NAME_CHARS} characters is "
            "needed",
            param=param,
        )
    if not NOT_IN_NAMES.isdisjoint(name):
        raise RequestError(
            f"{param} is {name!r}; quotes, angle brackets and line breaks cannot stand in the name "
            "of a tool",
            param=param,
        )
    return name
