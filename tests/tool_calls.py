"""An answer with two tool calls, and the tools it calls."""

from __future__ import annotations

from typing import Any

CALLS = (
    "The user wants two things.\nI call both tools.\n</think>\n\nOne moment.\n"
    '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">上海</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n'
    '<invoke name="search">\n<parameter name="query">a "quoted" & <b>line</b>\nnext</parameter>\n'
    "</invoke>\n</minimax:tool_call>"
)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
    },
]
