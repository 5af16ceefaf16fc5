"""What a call takes out of a tool's definition, many times for one reading of it: which of several
tools a request is for, its name, the names of its parameters, and which of the listed values is
meant.

A call of a conversation says a name once for some hundred tokens of definitions; here half of what
is said are names. All schemas belong to training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from m2serve.chat.messages import Assistant, User
from training.conversations.sample import Sample
from training.conversations.tool_domains import DOMAINS
from training.conversations.tool_schemas import OfferedTool, draw_tools
from training.conversations.tool_use import Use, draw_use, request_text

_WHICH = {
    "en": (
        "Which tool is each of these for, and with which parameters?\n{x}",
        "{x}\n\nName the tool and the parameters for every line.",
        "Do not call anything yet. Say which tool each line needs:\n{x}",
    ),
    "zh": ("下面每一项该用哪个工具，哪些参数？\n{x}", "{x}\n\n请说出每行要用的工具和参数。"),
}
_VALUES = {
    "en": (
        "Which tool is each of these for, with which parameters and values?\n{x}",
        "{x}\n\nName the tool for every line, and what you would pass.",
        "Do not call anything yet. Say what you would call:\n{x}",
    ),
    "zh": ("下面每一项该用哪个工具，参数和值是什么？\n{x}", "{x}\n\n请说出每行的工具、参数和值。"),
}
_LIST_VALUES = ("List your tools with the values they take.", "Which values do the tools allow?")
_LIST = ("List your tools with their parameters.", "Which tools do you have?", "Show the tools.")
_THOUGHT = {"en": "I look at the tools.", "zh": "我看一下工具。"}


def tool_drill(rng: random.Random, pieces: Sequence[str] = ()) -> Sample:
    """Requests, their tools and parameters; one time in five the tools alone."""
    num_tools = rng.choice((2, 3, 4, 4))
    offered = draw_tools(rng, "train", rng.sample(sorted(DOMAINS), num_tools), 0, pieces)
    with_values = rng.random() < 0.5
    if rng.random() < 0.2:
        listed = [f'"{t.tool.name}": {_parameters(t, with_values)}' for t in offered]
        asked = rng.choice(_LIST_VALUES if with_values else _LIST)
        return _sample(offered, asked, "\n".join(listed), "en")
    language = rng.choices(("en", "zh"), weights=(7, 3))[0]
    wanted = rng.sample(offered * 2, rng.randint(num_tools, 2 * num_tools))
    uses = [draw_use(rng, tool, language) for tool in wanted]
    asked = "\n".join(f"{n}. {request_text(rng, 'train', use)}" for n, use in enumerate(uses, 1))
    said = "\n".join(f"{n}. {_spoken(use, with_values)}" for n, use in enumerate(uses, 1))
    frame = rng.choice((_VALUES if with_values else _WHICH)[language])
    return _sample(offered, frame.replace("{x}", asked), said, language)


def _spoken(use: Use, with_values: bool) -> str:
    """The tool and what it gets, in quotes as in its definition: the tokens are the same there."""
    if with_values:
        return f'"{use.offered.tool.name}" with {use.planned}'
    named = ", ".join(f'"{name}"' for name in use.call.arguments)
    return f'"{use.offered.tool.name}": {named}'


def _parameters(offered: OfferedTool, with_values: bool) -> str:
    """Their names; with their types, or the values the schema lists."""
    if not with_values:
        return ", ".join(f'"{parameter.name}"' for parameter in offered.parameters.values())
    shapes = {p.name: p.form.schema for p in offered.parameters.values()}
    listed = (
        f'"{name}" of {json.dumps(shape["enum"])}'
        if "enum" in shape
        else f'"{name}" {shape["type"]}'
        for name, shape in shapes.items()
    )
    return ", ".join(listed)


def _sample(offered: Sequence[OfferedTool], asked: str, said: str, language: str) -> Sample:
    tools = tuple(item.tool for item in offered)
    turns = (User(asked), Assistant(said, _THOUGHT[language]))
    return Sample("drill", turns, tools=tools)
