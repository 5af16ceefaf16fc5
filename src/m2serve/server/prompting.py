"""From what a client sent to prompt ids. Slow for long texts, so called in a thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from m2serve.chat.messages import normalize
from m2serve.chat.renderer import ends_in_reasoning, render
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import Tool, parse_tools
from m2serve.errors import RequestError
from m2serve.server.protocol import ChatFields
from m2serve.server.protocol_ignored import refuse_unknown_in_messages

_TEMPLATE_KWARGS = ("enable_thinking", "model_identity", "thinking")
_SALT_BYTES = 32


@dataclass(frozen=True)
class ChatPrompt:
    """`tools` are those the model was offered; its output starts inside a think block or not."""

    token_ids: list[int]
    tools: tuple[Tool, ...]
    starts_in_reasoning: bool


def chat_prompt(
    fields: ChatFields, tokenizer: Tokenizer, model_identity: str, *, offer_tools: bool = True
) -> ChatPrompt:
    """Raises RequestError naming the field that is wrong."""
    identity = _template_identity(fields.chat_template_kwargs or {}) or model_identity
    tools = parse_tools(fields.tools)
    offered = tools if offer_tools else ()
    continues = bool(fields.continue_final_message)
    generates = fields.add_generation_prompt
    refuse_unknown_in_messages(fields.messages)
    segments = render(
        normalize(fields.messages),
        offered,
        add_generation_prompt=not continues if generates is None else generates,
        continue_final_message=continues,
        model_identity=identity,
    )
    ids = tokenizer.encode_segments(segments)
    return ChatPrompt(ids, offered, ends_in_reasoning(segments))


def completion_prompts(prompt: Any, tokenizer: Tokenizer, max_prompts: int) -> list[list[int]]:
    """The ids of a string, a list of ids, or a list of either; control tokens are recognised."""
    if isinstance(prompt, str) or _is_ids(prompt):
        return [_prompt_ids(prompt, "prompt", tokenizer)]
    if not isinstance(prompt, list) or not prompt:
        raise RequestError(
            "prompt is neither text nor a list of token ids nor a list of those", param="prompt"
        )
    if len(prompt) > max_prompts:
        raise RequestError(
            f"{len(prompt)} prompts were sent; at most {max_prompts} are allowed", param="prompt"
        )
    return [_prompt_ids(one, f"prompt[{i}]", tokenizer) for i, one in enumerate(prompt)]


def output_limit(
    requested: int | None, num_prompt_tokens: int, max_model_len: int, *, prompt_param: str
) -> int:
    """max_tokens of a sequence: as asked, or what the context leaves; RequestError with numbers."""
    if num_prompt_tokens >= max_model_len:
        raise RequestError(
            f"The prompt has {num_prompt_tokens} tokens, and the context of {max_model_len} tokens "
            "has to hold at least one more. Shorten the prompt.",
            param=prompt_param,
            code="context_length_exceeded",
        )
    if requested is None:
        return max_model_len - num_prompt_tokens
    if num_prompt_tokens + requested > max_model_len:
        raise RequestError(
            f"The prompt has {num_prompt_tokens} tokens and max_tokens is {_shown(requested)}; "
            f"together they exceed the context of {max_model_len} tokens. Ask for at most "
            f"{max_model_len - num_prompt_tokens} tokens or shorten the prompt.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return requested


def cache_salt(salt: str | None, api_key_digest: bytes | None) -> bytes:
    """Requests with different salts share no prefix cache; each of several API keys has its own."""
    if salt is None and api_key_digest is None:
        return b""
    text = b"" if salt is None else salt.encode()
    return blake2b(text, digest_size=_SALT_BYTES, key=api_key_digest or b"").digest()


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**12 else "a number of more than 12 digits"


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def _prompt_ids(prompt: Any, param: str, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, allow_control=True)
    elif isinstance(prompt, list) and all(type(id) is int for id in prompt):
        ids = prompt
    else:
        raise RequestError(f"{param} is neither text nor a list of token ids", param=param)
    if not ids:
        raise RequestError(f"{param} is empty; at least one token is needed", param=param)
    return ids


def _template_identity(kwargs: Mapping[str, Any]) -> str:
    """The identity asked for; the other variables only exist for templates that are not M2's."""
    for name, value in kwargs.items():
        if name not in _TEMPLATE_KWARGS:
            raise RequestError(
                f"chat_template_kwargs has {name[:80]!r}; only {', '.join(_TEMPLATE_KWARGS)} exist",
                param="chat_template_kwargs",
                code="unsupported_field",
            )
        if name != "model_identity" and value not in (True, None):
            raise RequestError(
                f"{name} cannot be {str(value)[:20]!r}: MiniMax-M2 always thinks",
                param=f"chat_template_kwargs.{name}",
                code="unsupported_field",
            )
    identity = kwargs.get("model_identity") or ""
    if not isinstance(identity, str):
        raise RequestError(
            "model_identity is not a string", param="chat_template_kwargs.model_identity"
        )
    return identity
