"""Fields that are accepted although they change nothing, and the values they may have.

Real clients send these: coding agents, the official SDKs, vLLM's own load generator. Everything
else that is unknown or unsupported is refused by name, so nobody believes in an option that does
not exist. A null asks for nothing and is always accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from m2serve.errors import RequestError

logger = logging.getLogger(__name__)

# Bookkeeping of the hosted service, and hints about speed.
_ANY_VALUE = frozenset(
    {
        "include_obfuscation",
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "spaces_between_special_tokens",
        "store",
        "user",
        "verbosity",
    }
)

# Switches that are accepted in the position M2 or this server has anyway.
_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "add_special_tokens": lambda value: isinstance(value, bool),
    "best_of": lambda value: value == 1,
    "early_stopping": lambda value: value is False,
    "echo": lambda value: value is False,
    "enable_thinking": lambda value: value is True,
    "length_penalty": lambda value: value == 1,
    "modalities": lambda value: value == ["text"],
    "priority": lambda value: value == 0,
    "reasoning_effort": lambda value: isinstance(value, str) and value not in ("none", "disabled"),
    "separate_reasoning": lambda value: value is True,
    "stream_reasoning": lambda value: value is True,
    "suffix": lambda value: value == "",
    "thinking": lambda value: (
        value is True
        or (isinstance(value, dict) and value.get("type") in ("enabled", "adaptive", "auto"))
    ),
    "use_beam_search": lambda value: value is False,
}

_WHY_NOT = {
    "best_of": "use n",
    "chat_template": "the prompt format of MiniMax-M2 is fixed",
    "enable_thinking": "MiniMax-M2 always thinks",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "reasoning_effort": "MiniMax-M2 always thinks, with one effort",
    "thinking": "MiniMax-M2 always thinks",
}


def refuse_unknown(extra: Mapping[str, Any], *, inside: str = "") -> None:
    """Raise RequestError naming the first field that asks for something we do not do."""
    for name, value in extra.items():
        if value is None:
            continue
        if name in _ANY_VALUE or (name in _HARMLESS and _HARMLESS[name](value)):
            logger.debug("%s%s is accepted and changes nothing", inside, name)
            continue
        path = (inside + name)[:80]
        why = _WHY_NOT.get(name, "remove it")
        if name in _HARMLESS:
            message = f"this value of {path} is not supported; {why}"
        else:
            message = f"{path} is not a field this server supports; {why}"
        raise RequestError(message, param=path, code="unsupported_field")
