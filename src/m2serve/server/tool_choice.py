"""tool_choice: which of the offered tools the model must call, and the form that makes it do so.

    "auto", absent                                      the model decides
    "none"                                              no tools are offered
    "required"                                          one call or more, of any tool
    {"type": "function", "function": {"name": NAME}}    exactly one call, of that tool

A forced answer is held to M2's own format of a call, with the names and the types of the tool's
schema: parameters come in the schema's order, the required ones always. A text may be anything but
the format's own tags. Of a schema that llguidance cannot follow only the types count. Behind a
prompt that ends in thinking the call begins after the thinking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from m2serve.chat.coercion import STRING_ONLY, Coercer
from m2serve.chat.control import ControlTokens
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import MAX_NAME_CHARS, NOT_IN_NAMES, Tool
from m2serve.engine.request import StructuredOutput
from m2serve.engine.structured_output import JSON_OPTIONS, MAX_TOOLS_BYTES, schema_problem
from m2serve.errors import RequestError
from m2serve.server.structured_output import BEFORE_CALL

MAX_PARAMETERS = 1000
_RULES = r"""
text[lazy]: TEXT
TEXT: /(?s:.*)<\/parameter>/ & ~/(?s:.*)(<\/invoke\s*>|<parameter\s+name|<\/parameter\s+>)(?s:.*)/
NAME: /[^"'<>\r\n]{1,64}/
named: "<parameter name=\"" NAME "\">" text "\n"
"""
_JSON_TYPES = ("null", "boolean", "integer", "number", "array", "object")
# What says nothing about the value.
_NOTES = frozenset({"type", "description", "title", "default", "examples"})


def offers_tools(tool_choice: Any) -> bool:
    """Whether the prompt has the tools in it; raises RequestError for what is no tool_choice."""
    if tool_choice in (None, "auto", "required") or _name(tool_choice) is not None:
        return True
    if tool_choice == "none":
        return False
    raise RequestError(
        f"tool_choice is {str(tool_choice)[:80]!r}; 'auto', 'none', 'required' and "
        '{"type": "function", "function": {"name": ...}} are supported',
        param="tool_choice",
        code="unsupported_field",
    )


def forced_tools(tool_choice: Any, tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Those of which one has to be called, () where the model decides. Raises RequestError."""
    name = _name(tool_choice)
    if tool_choice != "required" and name is None:
        return ()
    if not tools:
        what = "'required'" if name is None else f"the tool {name[:80]!r}"
        raise RequestError(f"tool_choice is {what}, but no tools were sent", param="tool_choice")
    found = tuple(tool for tool in tools if name in (None, tool.name))
    if not found:
        raise RequestError(
            f"tool_choice names the tool {str(name)[:80]!r}, which is not among those sent",
            param="tool_choice",
        )
    return found


def call_form(
    tools: Sequence[Tool], tokenizer: Tokenizer, *, one_call: bool, in_thinking: bool
) -> StructuredOutput:
    """What an answer that calls one of the tools looks like; takes milliseconds to a second.

    Raises RequestError for tools with too much in them.
    """
    form = StructuredOutput(
        kind="tool_calls", text=call_grammar(tools, tokenizer.control, one_call=one_call)
    )
    if not in_thinking:
        return form
    return replace(
        form,
        after_token_ids=(tokenizer.control.think_end,),
        prefix_token_ids=tuple(tokenizer.encode(BEFORE_CALL)),
        # A call inside the thinking would end it, and would have no form.
        not_before_token_ids=(tokenizer.control.call_start,),
    )


def call_grammar(tools: Sequence[Tool], control: ControlTokens, *, one_call: bool) -> str:
    """llguidance's Lark: a block of calls, the special tokens by their ids."""
    num_parameters = sum(len(_properties(tool.parameters)) for tool in tools)
    if num_parameters > MAX_PARAMETERS:
        raise RequestError(
            f"The tools of a forced call have {num_parameters} parameters; at most "
            f"{MAX_PARAMETERS} are allowed. Send fewer tools, or name one.",
            param="tools",
        )
    rules = [
        f'start: <[{control.call_start}]> "\\n" call{"" if one_call else "+"} '
        f"<[{control.call_end}]>",
        "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
    ]
    size = 0
    for number, tool in enumerate(tools):
        for rule in _rules_of(tool, number):
            size += len(rule)
            if size > MAX_TOOLS_BYTES:
                raise RequestError(
                    f"The schemas of the tools of a forced call have more than {MAX_TOOLS_BYTES} "
                    "bytes together. Send fewer tools, or name one.",
                    param="tools",
                )
            rules.append(rule)
    return "\n".join(rules) + _RULES


def _rules_of(tool: Tool, number: int) -> Iterator[str]:
    schema = tool.parameters
    coercer = Coercer(schema)
    required = schema.get("required")
    names_required = frozenset(
        name for name in (required if isinstance(required, list) else ()) if isinstance(name, str)
    )
    names = []
    for index, (key, value) in enumerate(_properties(schema).items()):
        if not 0 < len(key) <= MAX_NAME_CHARS or not NOT_IN_NAMES.isdisjoint(key):
            continue  # M2's format has no way to write it
        rule = f"arg_{number}_{index}"
        names.append(rule if key in names_required else f"{rule}?")
        opening = _quoted(f'<parameter name="{key}">')
        yield f"{rule}: {opening} {_value(key, value, schema, coercer)}"
    if not names and schema.get("additionalProperties"):
        names = ["named*"]
    opening = _quoted(f'<invoke name="{tool.name}">\n')
    yield f"call_{number}: {' '.join((opening, *names))} " + _quoted("</invoke>\n")


def _value(key: str, value: Any, root: Mapping[str, Any], coercer: Coercer) -> str:
    """A value and the tag behind it; strings stand as they are, everything else as JSON."""
    types = coercer.types(key)
    closing = _quoted("</parameter>\n")
    if "string" not in types:
        schema = _json_schema(value, root, types)
        return f"%json {json.dumps({**schema, **JSON_OPTIONS})} {closing}"
    options = _options(value) if types == STRING_ONLY else ()
    if options:
        return f"({' | '.join(map(_quoted, options))}) {closing}"
    return r'text "\n"'


def _options(schema: Any) -> list[str]:
    """The only strings there are, [] where any will do."""
    if not isinstance(schema, Mapping):
        return []
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(options, list) or not all(isinstance(o, str) and o for o in options):
        return []
    return [] if any("<" in option for option in options) else options


def _json_schema(schema: Any, root: Mapping[str, Any], types: frozenset[str]) -> Mapping[str, Any]:
    """The parameter's schema, or no more than its types where it cannot be followed."""
    plain = {"type": [name for name in _JSON_TYPES if name in types]}
    if not isinstance(schema, Mapping) or schema.keys() <= _NOTES:
        return plain
    own = {name: value for name, value in schema.items() if name != "x-guidance"}
    if '"$ref"' in json.dumps(own):
        own |= {name: root[name] for name in ("$defs", "definitions") if name in root}
    return plain if schema_problem({**own, **JSON_OPTIONS}) else own


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _name(tool_choice: Any) -> str | None:
    """Of a named tool; None for everything else."""
    if not isinstance(tool_choice, Mapping) or tool_choice.get("type") != "function":
        return None
    function = tool_choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
