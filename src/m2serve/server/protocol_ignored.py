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

# Bookkeeping of the hosted service, and hints about speed or about how to do it.
_ANY_VALUE = frozenset(
    {
        "guided_decoding_backend",
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

# What `chat.messages` reads of a message, and what clients attach to messages they keep.
_MESSAGE_FIELDS = frozenset(
    {
        "content",
        "current_date",
        "current_location",
        "function_call",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "role",
        "tool_call_id",
        "tool_calls",
    }
)
_MESSAGE_BOOKKEEPING = frozenset(
    {
        "annotations",
        "cache_control",
        "created_at",
        "experimental_providerMetadata",
        "id",
        "is_error",
        "metadata",
        "name",
        "providerOptions",
        "provider_metadata",
        "provider_specific_fields",
        "refusal",
        "status",
        "timestamp",
        "type",
    }
)
_PART_FIELDS = frozenset({"annotations", "cache_control", "id", "text", "type"})

_WHY_NOT = {
    "best_of": "use n",
    "chat_template": "the prompt format of MiniMax-M2 is fixed",
    "enable_thinking": "MiniMax-M2 always thinks",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "reasoning_effort": "MiniMax-M2 always thinks, with one effort",
    "thinking": "MiniMax-M2 always thinks",
}


def refuse_unknown_in_messages(messages: list[Any]) -> None:
    """The same for the fields of each message and of each part of its content."""
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        path = f"messages[{index}]"
        _refuse_others(message, _MESSAGE_FIELDS | _MESSAGE_BOOKKEEPING, path)
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") == "text":
                _refuse_others(part, _PART_FIELDS, f"{path}.content[{number}]")


def _refuse_others(value: Mapping[str, Any], known: frozenset[str], path: str) -> None:
    for name, field in value.items():
        if name not in known and field is not None:
            param = f"{path}.{name[:80]}"
            raise RequestError(
                f"{param} is not a field this server supports; remove it",
                param=param,
                code="unsupported_field",
            )


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
