"""tool_choice: which of the offered tools the model must call, and the form that makes it do so.

    "auto", absent                                      the model decides
    "none"                                              no tools are offered
    "required"                                          one call or more, of any tool
    {"type": "function", "function": {"name": NAME}}    exactly one call, of that tool

A forced answer is held to M2's own format of a call, with the names and the types of the tool's
schema: parameters come in the schema's order, the required ones always. A text may be anything but
the format's own tags. Behind a prompt that ends in thinking the call begins after the thinking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m2serve.chat.coercion import STRING_ONLY, Coercer
from m2serve.chat.control import ControlTokens
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import NOT_IN_NAMES, Tool
from m2serve.engine.request import StructuredOutput
from m2serve.errors import RequestError

# With no content before it, a call stands on a line of its own behind the thinking.
_BEHIND_THINKING = "\n\n\n"
_RULES = r"""
text[lazy]: TEXT
TEXT: /(?s:.*)<\/parameter>/ & ~/(?s:.*)(<\/invoke>|<parameter name=)(?s:.*)/
NAME: /[^"'<>\r\n]{1,64}/
named: "<parameter name=\"" NAME "\">" text "\n"
"""


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
    """What an answer that calls one of the tools looks like."""
    form = StructuredOutput(
        kind="tool_calls", text=call_grammar(tools, tokenizer.control, one_call=one_call)
    )
    if not in_thinking:
        return form
    return StructuredOutput(
        kind=form.kind,
        text=form.text,
        after_token_ids=(tokenizer.control.think_end,),
        prefix_token_ids=tuple(tokenizer.encode(_BEHIND_THINKING)),
    )


def call_grammar(tools: Sequence[Tool], control: ControlTokens, *, one_call: bool) -> str:
    """llguidance's Lark: a block of calls, the special tokens by their ids."""
    rules = [
        f'start: <[{control.call_start}]> "\\n" call{"" if one_call else "+"} '
        f"<[{control.call_end}]>",
        "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
    ]
    for number, tool in enumerate(tools):
        rules += _rules_of(tool, number)
    return "\n".join(rules) + _RULES


def _rules_of(tool: Tool, number: int) -> Iterator[str]:
    schema = tool.parameters
    coercer = Coercer(schema)
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    names = []
    for index, (key, value) in enumerate(_properties(schema).items()):
        if not NOT_IN_NAMES.isdisjoint(key):  # M2's format has no way to write it
            continue
        rule = f"arg_{number}_{index}"
        names.append(rule if key in required else f"{rule}?")
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
        return f"%json {json.dumps(_with_definitions(value, root))} {closing}"
    options = value.get("enum") if isinstance(value, Mapping) and types == STRING_ONLY else None
    if isinstance(options, list) and options and all(_is_option(option) for option in options):
        return f"({' | '.join(map(_quoted, options))}) {closing}"
    return r'text "\n"'


def _is_option(option: Any) -> bool:
    return isinstance(option, str) and bool(option) and "<" not in option


def _with_definitions(value: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a parameter with what its references point to."""
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
    return {**definitions, **(value if isinstance(value, Mapping) else {})}


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
