"""From the fields of a request to the engine's SamplingParams. No clock, no engine."""

from __future__ import annotations

from typing import Any, TypeVar

from m2serve.chat.stop import MAX_STOP_STRINGS
from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.request import SamplingParams, StructuredOutput
from m2serve.engine.validation import MAX_BAD_WORDS, MAX_LOGIT_BIAS
from m2serve.errors import RequestError
from m2serve.server.config import DefaultSampling
from m2serve.server.protocol import GenerationFields

MAX_BAD_WORD_CHARS = 256

T = TypeVar("T")


def sampling_params(
    fields: GenerationFields,
    defaults: DefaultSampling,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    logprobs: int | None,
    structured_output: StructuredOutput | None = None,
) -> SamplingParams:
    """Raises RequestError for what the engine's own check cannot name; ranges are left to it."""
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=_given(fields.min_tokens, 0),
        temperature=_given(fields.temperature, defaults.temperature),
        # More than there are ids is no limit; the number itself may be larger than 64 bits.
        top_k=min(_given(fields.top_k, defaults.top_k), tokenizer.used_vocab_size),
        top_p=_given(fields.top_p, defaults.top_p),
        min_p=_given(fields.min_p, defaults.min_p),
        repetition_penalty=_given(fields.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_given(fields.presence_penalty, 0.0),
        frequency_penalty=_given(fields.frequency_penalty, 0.0),
        seed=fields.seed,
        eos_token_ids=(tokenizer.control.turn_end,),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        logit_bias=_logit_bias(fields.logit_bias),
        allowed_token_ids=_allowed(fields.allowed_token_ids),
        bad_words_ids=_bad_words_ids(fields.bad_words or [], tokenizer),
        logprobs=logprobs,
        prompt_logprobs=fields.prompt_logprobs,
        structured_output=structured_output,
    )


def seed_of_sequence(seed: int | None, index: int) -> int | None:
    """The n sequences of a request differ, and each is repeatable; wraps at 64 bits."""
    if seed is None or index == 0:
        return seed
    return (seed + index + 2**63) % 2**64 - 2**63


def stop_strings(stop: Any) -> tuple[str, ...]:
    """Their number and lengths are checked here or by StopMatcher."""
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
        raise RequestError("stop is neither a string nor a list of strings", param="stop")
    if len(stop) > MAX_STOP_STRINGS:
        raise RequestError(
            f"{len(stop)} stop strings were sent; at most {MAX_STOP_STRINGS} are allowed",
            param="stop",
        )
    return tuple(stop)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _allowed(ids: list[int] | None) -> tuple[int, ...] | None:
    if ids is not None and not ids:
        raise RequestError("allowed_token_ids is empty", param="allowed_token_ids")
    return None if ids is None else tuple(ids)


def _logit_bias(bias: Any) -> dict[int, float] | None:
    if bias is None or bias == {}:
        return None
    if not isinstance(bias, dict):
        raise RequestError("logit_bias is not an object", param="logit_bias")
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"logit_bias has {len(bias)} entries; at most {MAX_LOGIT_BIAS} are allowed",
            param="logit_bias",
        )
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise RequestError(
                f"logit_bias has the key {key[:40]!r}; token ids are needed", param="logit_bias"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(f"logit_bias[{key}] is not a number", param="logit_bias")
    return {int(key): float(value) for key, value in bias.items()}


def _bad_words_ids(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """A word at the start of a text and one behind a blank are different ids."""
    if len(words) > MAX_BAD_WORDS // 2:
        raise RequestError(
            f"{len(words)} bad_words were sent; at most {MAX_BAD_WORDS // 2} are allowed",
            param="bad_words",
        )
    sequences: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        if not 0 < len(word) <= MAX_BAD_WORD_CHARS:
            raise RequestError(
                f"bad_words[{index}] has {len(word)} characters; "
                f"1 to {MAX_BAD_WORD_CHARS} are allowed",
                param=f"bad_words[{index}]",
            )
        sequences[tuple(tokenizer.encode(word))] = None
        sequences[tuple(tokenizer.encode(" " + word.lstrip()))] = None
    return tuple(sequences)
