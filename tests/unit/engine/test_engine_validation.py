"""Every refusal of the engine names the field and the value."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from m2serve.engine.request import EngineRequest, SamplingParams, StructuredOutput
from m2serve.engine.structured_output import MAX_TOOLS_BYTES
from m2serve.engine.validation import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKEN_IDS,
    check_request,
)
from m2serve.errors import RequestError


@dataclass(frozen=True)
class _Limits:
    vocab_size: int = 2000
    used_vocab_size: int = 1990
    max_model_len: int = 64
    num_kv_blocks: int = 16
    kv_block_size: int = 4


def _form(kind: Any, size: int) -> StructuredOutput:
    return StructuredOutput(kind=kind, text="x" * size)


def _check(
    prompt: list[int] | None = None,
    limits: _Limits | None = None,
    request_id: str = "r",
    cache_salt: bytes = b"",
    **sampling: object,
) -> None:
    request = EngineRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 1999] if prompt is None else prompt,
        sampling=SamplingParams(**{"max_tokens": 5, **sampling}),
        cache_salt=cache_salt,
    )
    check_request(request, limits or _Limits())


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"max_tokens": 10**9, "min_tokens": 5},
        {"temperature": 0.0},
        {"temperature": 1e9},
        {"top_k": -1},
        {"top_k": 10**9},
        {"top_p": 1e-9, "min_p": 1.0},
        {"repetition_penalty": 1.1, "presence_penalty": -2, "frequency_penalty": 2.0},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"eos_token_ids": (1999,), "stop_token_ids": tuple(range(MAX_STOP_TOKEN_IDS))},
        {"logit_bias": {0: -100, 1999: 100}},
        {"allowed_token_ids": (1999, 0)},
        {"allowed_token_ids": (7,), "eos_token_ids": (7,)},
        {"allowed_token_ids": (7, 8), "eos_token_ids": (7,), "min_tokens": 1},
        {"bad_words_ids": ((0,), (1, 1999))},
        {"forced_token_ids": (0, 1989)},
        {"logprobs": 0},
        {"logprobs": 20},
        {"prompt_logprobs": 20, "prompt": [1989]},
        {"prompt": [0] * 63},
        {"cache_salt": b"x" * 64},
        {"limits": _Limits(used_vocab_size=0), "allowed_token_ids": (1999,)},
        {"structured_output": _form("tool_calls", MAX_TOOLS_BYTES), "eos_token_ids": (7,)},
    ],
)
def test_a_good_request_passes(sampling) -> None:
    _check(**sampling)


@pytest.mark.parametrize(
    ("field", "sampling", "shown"),
    [
        ("prompt", {"prompt": []}, "[]"),
        ("prompt", {"prompt": [1, -1]}, "-1"),
        ("prompt", {"prompt": [1, 2000, 3]}, "2000"),
        ("prompt", {"prompt": [1990], "prompt_logprobs": 1}, "1990"),
        ("request_id", {"request_id": ""}, "''"),
        ("request_id", {"request_id": "x" * 257}, "xxx"),
        ("cache_salt", {"cache_salt": b"x" * 65}, "64"),
        ("max_tokens", {"max_tokens": 0}, "0"),
        ("max_tokens", {"max_tokens": -5}, "-5"),
        ("min_tokens", {"min_tokens": -1}, "-1"),
        ("min_tokens", {"min_tokens": 6}, "max_tokens (5)"),
        ("temperature", {"temperature": -0.1}, "-0.1"),
        ("temperature", {"temperature": math.inf}, "inf"),
        ("temperature", {"temperature": math.nan}, "nan"),
        ("top_k", {"top_k": -2}, "-2"),
        ("top_p", {"top_p": 0.0}, "0.0"),
        ("top_p", {"top_p": 1.1}, "1.1"),
        ("top_p", {"top_p": math.nan}, "nan"),
        ("min_p", {"min_p": -0.1}, "-0.1"),
        ("min_p", {"min_p": 1.5}, "1.5"),
        ("repetition_penalty", {"repetition_penalty": 0.0}, "0.0"),
        ("repetition_penalty", {"repetition_penalty": math.inf}, "inf"),
        ("presence_penalty", {"presence_penalty": 2.1}, "2.1"),
        ("presence_penalty", {"presence_penalty": math.nan}, "nan"),
        ("frequency_penalty", {"frequency_penalty": -2.1}, "-2.1"),
        ("seed", {"seed": 2**63}, str(2**63)),
        ("logprobs", {"logprobs": 21}, "21"),
        ("structured_output", {"structured_output": _form("grammar", 2**16 + 1)}, "65536 bytes"),
        ("structured_output", {"structured_output": _form("tool_calls", 2**19 + 1)}, "524288"),
        ("logprobs", {"logprobs": -1}, "-1"),
        ("prompt_logprobs", {"prompt_logprobs": 21, "prompt": [1]}, "21"),
        ("eos_token_ids", {"eos_token_ids": (2000,)}, "2000"),
        ("stop_token_ids", {"stop_token_ids": (-1,)}, "-1"),
        ("stop_token_ids", {"stop_token_ids": (1,) * (MAX_STOP_TOKEN_IDS + 1)}, "129"),
        ("logit_bias", {"logit_bias": {2000: 1.0}}, "2000"),
        ("logit_bias", {"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0)}, "1025"),
        ("logit_bias[3]", {"logit_bias": {3: 100.5}}, "100.5"),
        ("logit_bias[3]", {"logit_bias": {3: math.nan}}, "nan"),
        ("allowed_token_ids", {"allowed_token_ids": ()}, "()"),
        ("allowed_token_ids", {"allowed_token_ids": (1995,)}, "1995"),
        ("allowed_token_ids", {"allowed_token_ids": (0, 2000)}, "2000"),
        ("allowed_token_ids", {"allowed_token_ids": (0,) * 2001}, "2001"),
        (
            "allowed_token_ids",
            {"allowed_token_ids": (7,), "eos_token_ids": (7,), "min_tokens": 1},
            "(7,)",
        ),
        ("bad_words_ids", {"bad_words_ids": ((),)}, "()"),
        ("bad_words_ids", {"bad_words_ids": ((1, 2000),)}, "2000"),
        ("bad_words_ids", {"bad_words_ids": ((1,),) * (MAX_BAD_WORDS + 1)}, "257"),
        ("bad_words_ids", {"bad_words_ids": ((1,) * (MAX_BAD_WORD_TOKENS + 1),)}, "32"),
        ("forced_token_ids", {"forced_token_ids": ()}, "()"),
        ("forced_token_ids", {"forced_token_ids": (1990,)}, "1990"),
        ("forced_token_ids", {"forced_token_ids": (-7,)}, "-7"),
        ("forced_token_ids", {"forced_token_ids": (1,) * 65}, "65"),
    ],
)
def test_a_bad_request_is_refused_by_field_and_value(field: str, sampling, shown: str) -> None:
    with pytest.raises(RequestError) as caught:
        _check(**sampling)
    assert caught.value.param == field
    assert caught.value.status == 400
    assert shown in str(caught.value)
    assert str(caught.value).startswith(field) or field == "prompt"
    assert len(str(caught.value)) < 300


def test_a_prompt_beyond_the_context_is_refused_with_exact_numbers() -> None:
    _check([1] * 63)
    with pytest.raises(RequestError, match=r"64 tokens.*context length of 64 tokens") as caught:
        _check([1] * 64)
    assert caught.value.code == "context_length_exceeded"


def test_a_prompt_beyond_the_kv_cache_is_refused_with_exact_numbers() -> None:
    limits = _Limits(num_kv_blocks=3)
    _check([1] * 11, limits)
    with pytest.raises(RequestError, match=r"12 tokens.*12 tokens \(3 blocks of 4\)") as caught:
        _check([1] * 12, limits)
    assert caught.value.code == "context_length_exceeded"
