"""The engine's own check of a request, before anything is allocated for it.

The server checks too; this is the second wall, and the one nobody can walk around. What is too
large or out of range here has killed or stalled other engines: negative and too large token ids
(vLLM: CVE-2026-93592), max_tokens 0 (CVE-2026-93436), salts of any length (CVE-2026-100647).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from reprlib import repr as short_repr
from typing import Any, NoReturn, Protocol

from m2serve.engine.request import EngineRequest, SamplingParams, StructuredOutput
from m2serve.engine.structured_output import most_bytes
from m2serve.errors import RequestError

MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 32
MAX_CACHE_SALT_BYTES = 64
MAX_REQUEST_ID_CHARS = 256
MAX_STRUCTURED_OUTPUT_IDS = 16

# (field, what is allowed, the same in words). No comparison holds for NaN, so NaN is refused too.
# The bounds of repetition_penalty keep any float32 logit finite.
_NUMBERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("max_tokens", lambda value: 1 <= value < 2**31, "a whole number from 1 up, of 31 bits"),
    ("min_tokens", lambda value: 0 <= value < 2**31, "a whole number from 0 up, of 31 bits"),
    ("temperature", lambda value: 0 <= value < math.inf, "a finite number from 0 up"),
    ("top_k", lambda value: -1 <= value < 2**31, "a whole number of 31 bits; 0 or -1: no limit"),
    ("top_p", lambda value: 0 < value <= 1, "a number above 0 and up to 1"),
    ("min_p", lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    ("repetition_penalty", lambda value: 0.01 <= value <= 100, "a number from 0.01 to 100"),
    ("presence_penalty", lambda value: -2 <= value <= 2, "a number from -2 to 2"),
    ("frequency_penalty", lambda value: -2 <= value <= 2, "a number from -2 to 2"),
)
_OPTIONAL_NUMBERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda value: -(2**63) <= value < 2**63, "a whole number of 64 bits"),
    ("logprobs", lambda value: 0 <= value <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"),
    ("prompt_logprobs", lambda value: 0 <= value <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"),
)


class Limits(Protocol):
    """What an engine can serve; an EngineInfo is one.

    `used_vocab_size` 0: the whole vocabulary. `num_kv_blocks` 0: the cache is the engine's secret.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def used_vocab_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def num_kv_blocks(self) -> int: ...
    @property
    def kv_block_size(self) -> int: ...


def check_request(request: EngineRequest, limits: Limits) -> None:
    """Raise RequestError naming the offending field and value; return when all is well."""
    if not 1 <= len(request.request_id) <= MAX_REQUEST_ID_CHARS:
        _refuse("request_id", request.request_id, f"1 to {MAX_REQUEST_ID_CHARS} characters")
    if len(request.cache_salt) > MAX_CACHE_SALT_BYTES:
        _refuse("cache_salt", request.cache_salt, f"at most {MAX_CACHE_SALT_BYTES} bytes")
    _check_prompt(request.prompt_token_ids, limits)
    _check_numbers(request.sampling)
    _check_token_lists(request.sampling, request.prompt_token_ids, limits)
    if request.sampling.structured_output is not None:
        _check_structured_output(request.sampling, request.sampling.structured_output, limits)


def _check_prompt(prompt: list[int], limits: Limits) -> None:
    if not prompt:
        _refuse("prompt", prompt, "at least one token")
    if len(prompt) + 1 > limits.max_model_len:
        raise RequestError(
            f"The prompt has {len(prompt)} tokens; with one token of output that is more than the "
            f"context length of {limits.max_model_len} tokens (max_model_len). Shorten the prompt.",
            param="prompt",
            code="context_length_exceeded",
        )
    capacity = limits.num_kv_blocks * limits.kv_block_size
    if limits.num_kv_blocks and len(prompt) + 1 > capacity:
        raise RequestError(
            f"The prompt has {len(prompt)} tokens; with one token of output that is more than the "
            f"KV cache holds, {capacity} tokens ({limits.num_kv_blocks} blocks of "
            f"{limits.kv_block_size}). Shorten the prompt or start with more "
            f"kv_cache_memory_bytes.",
            param="prompt",
            code="context_length_exceeded",
        )
    _check_ids("prompt", prompt, limits.vocab_size)


def _check_numbers(sampling: SamplingParams) -> None:
    for field, allowed, wanted in _NUMBERS:
        value = getattr(sampling, field)
        if not allowed(value):
            _refuse(field, value, wanted)
    for field, allowed, wanted in _OPTIONAL_NUMBERS:
        value = getattr(sampling, field)
        if value is not None and not allowed(value):
            _refuse(field, value, wanted)
    if sampling.min_tokens > sampling.max_tokens:
        _refuse("min_tokens", sampling.min_tokens, f"at most max_tokens ({sampling.max_tokens})")


def _check_token_lists(sampling: SamplingParams, prompt: list[int], limits: Limits) -> None:
    vocab_size = limits.vocab_size
    used_vocab_size = limits.used_vocab_size or vocab_size
    for field in ("eos_token_ids", "stop_token_ids"):
        ids = getattr(sampling, field)
        _check_count(field, ids, MAX_STOP_TOKEN_IDS)
        _check_ids(field, ids, vocab_size)
    if sampling.logit_bias:
        _check_logit_bias(sampling.logit_bias, vocab_size)
    if sampling.allowed_token_ids is not None:
        _check_count("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
        _check_ids("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
        if min(sampling.allowed_token_ids, default=used_vocab_size) >= used_vocab_size:
            wanted = f"at least one id below {used_vocab_size}, the part of the vocabulary in use"
            _refuse("allowed_token_ids", sampling.allowed_token_ids, wanted)
        ends = {*sampling.eos_token_ids, *sampling.stop_token_ids}
        if sampling.min_tokens and ends.issuperset(sampling.allowed_token_ids):
            wanted = "an id that does not end the answer, because min_tokens bans those that do"
            _refuse("allowed_token_ids", sampling.allowed_token_ids, wanted)
    _check_count("bad_words_ids", sampling.bad_words_ids, MAX_BAD_WORDS)
    for word in sampling.bad_words_ids:
        if not 1 <= len(word) <= MAX_BAD_WORD_TOKENS:
            _refuse("bad_words_ids", word, f"1 to {MAX_BAD_WORD_TOKENS} ids a word")
        _check_ids("bad_words_ids", word, vocab_size)
    if sampling.forced_token_ids is not None:
        if not sampling.forced_token_ids:
            _refuse("forced_token_ids", sampling.forced_token_ids, "at least one id, or null")
        _check_count("forced_token_ids", sampling.forced_token_ids, limits.max_model_len)
        _check_ids("forced_token_ids", sampling.forced_token_ids, used_vocab_size)
    if sampling.prompt_logprobs is not None:
        # Ids outside the used part have no logprob to report.
        _check_ids("prompt", prompt, used_vocab_size)


def _check_structured_output(
    sampling: SamplingParams, output: StructuredOutput, limits: Limits
) -> None:
    """Its text has been read by `structured_output.check_structured_output`, or is by the engine.

    What would go on behind the end of the form leaves no token to choose there.
    """
    most = most_bytes(output)
    if len(output.text.encode()) > most:
        _refuse("structured_output", output.text, f"a text of at most {most} bytes")
    fields = ("after_token_ids", "prefix_token_ids", "free_token_ids", "free_prefix_token_ids")
    for field in fields:
        ids = getattr(output, field)
        _check_count(field, ids, MAX_STRUCTURED_OUTPUT_IDS)
        _check_ids(field, ids, limits.used_vocab_size or limits.vocab_size)
    if sampling.ignore_eos or not sampling.eos_token_ids:
        _refuse("ignore_eos", True, "false with structured output, which ends where it is complete")
    if sampling.min_tokens:
        _refuse("min_tokens", sampling.min_tokens, "0 with structured output")


def _check_logit_bias(logit_bias: dict[int, float], vocab_size: int) -> None:
    _check_count("logit_bias", logit_bias, MAX_LOGIT_BIAS)
    _check_ids("logit_bias", logit_bias, vocab_size)
    for token_id, bias in logit_bias.items():
        if not -100 <= bias <= 100:
            _refuse(f"logit_bias[{token_id}]", bias, "a number from -100 to 100")


def _check_count(field: str, values: Collection[object], limit: int) -> None:
    if len(values) > limit:
        raise RequestError(
            f"{field} has {len(values)} entries; at most {limit} are allowed", param=field
        )


def _check_ids(field: str, ids: Collection[int], vocab_size: int) -> None:
    """min and max run in C: a prompt may have hundreds of thousands of ids."""
    for token_id in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token_id < vocab_size:
            _refuse(field, token_id, f"token ids from 0 to {vocab_size - 1}")


def _refuse(field: str, value: object, wanted: str) -> NoReturn:
    raise RequestError(f"{field} is {short_repr(value)}; allowed: {wanted}", param=field)
