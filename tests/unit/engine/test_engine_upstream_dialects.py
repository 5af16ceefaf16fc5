"""What is sent to vLLM and SGLang, and what their answers mean. No network."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from fake_upstream import vllm_chunk, vllm_usage
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.engine.request import (
    EngineOutput,
    EngineRequest,
    SamplingParams,
    StructuredKind,
    StructuredOutput,
    TokenLogprob,
)
from m2serve.engine.upstream_dialect import Reader, UpstreamBusyError, UpstreamError
from m2serve.engine.upstream_sglang import SglangDialect
from m2serve.engine.upstream_vllm import VllmDialect
from m2serve.errors import M2Error, RequestError

VLLM = VllmDialect(lambda ids: " word" if ids == (7, 8) else "word")
SGLANG = SglangDialect()


def request(salt: bytes = b"", **sampling: Any) -> EngineRequest:
    sampling.setdefault("max_tokens", 8)
    return EngineRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        sampling=SamplingParams(eos_token_ids=(9,), **sampling),
        cache_salt=salt,
    )


def read_all(reader: Reader, *events: dict[str, Any]) -> list[EngineOutput]:
    outputs = [reader.read(event) for event in events] + [reader.finish()]
    return [output for output in outputs if output is not None]


def test_vllm_is_told_everything() -> None:
    body = VLLM.body(
        request(
            b"\x01\xff",
            min_tokens=2,
            temperature=0.5,
            top_k=5,
            top_p=0.9,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.3,
            seed=-4,
            stop_token_ids=(9, 10),
            logit_bias={5: -3.0},
            allowed_token_ids=(1, 2),
            bad_words_ids=((7, 8), (6,)),
            logprobs=3,
        ),
        "m",
    )
    assert body == {
        "model": "m",
        "prompt": [1, 2, 3],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "max_tokens": 8,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": -4,
        "ignore_eos": False,
        "stop_token_ids": [9, 10],
        "logit_bias": {"5": -3.0},
        "allowed_token_ids": [1, 2],
        "bad_words": ["word"],
        "logprobs": 3,
        "cache_salt": "01ff",
    }


def test_end_ids_are_sent_unless_ignored() -> None:
    assert VLLM.body(request(), "m")["stop_token_ids"] == [9]
    ignoring = VLLM.body(request(ignore_eos=True, stop_token_ids=(4,)), "m")
    assert (ignoring["stop_token_ids"], ignoring["ignore_eos"]) == ([4], True)


def test_no_limit_has_one_spelling() -> None:
    assert VLLM.body(request(top_k=0), "m")["top_k"] == -1
    assert SGLANG.body(request(top_k=0), "m")["sampling_params"]["top_k"] == -1


def test_prompt_logprobs_are_not_streamed_from_vllm() -> None:
    body = VLLM.body(request(prompt_logprobs=0), "m")
    assert (body["stream"], body["prompt_logprobs"]) == (False, 0)
    assert "stream_options" not in body


@pytest.mark.parametrize("dialect", [VLLM, SGLANG])
def test_forced_answers_need_the_own_engine(dialect: VllmDialect | SglangDialect) -> None:
    with pytest.raises(RequestError, match="own engine"):
        dialect.body(request(forced_token_ids=(1,)), "m")


def test_vllm_stop_ids_end_the_last_output() -> None:
    for reason in (None, 9):
        events = vllm_chunk([5]), vllm_chunk([6, 9], "stop", stop_reason=reason), vllm_usage(3)
        first, last = read_all(VLLM.reader(request()), *events)
        assert (first.finish_reason, first.stop_token_id) == (None, None)
        assert (last.token_ids, last.finish_reason, last.stop_token_id) == ([6, 9], "stop", 9)


def test_vllm_length_and_abort() -> None:
    for reason in ("length", "abort"):
        [output] = read_all(VLLM.reader(request()), vllm_chunk([5], reason))
        assert (output.finish_reason, output.stop_token_id) == (reason, None)


def test_vllm_logprobs_name_the_chosen_first_and_rank_the_rest() -> None:
    logprobs = {
        "tokens": ["token_id:5", "token_id:6"],
        "token_logprobs": [-3.0, -0.5],
        "top_logprobs": [
            {"token_id:5": -3.0, "token_id:1": -0.1, "token_id:2": -2.0},
            {"token_id:6": -0.5, "token_id:3": -1.0},
        ],
    }
    [output] = read_all(
        VLLM.reader(request(logprobs=2)), vllm_chunk([5, 6], "length", logprobs=logprobs)
    )
    assert output.logprobs == [
        [TokenLogprob(5, -3.0, 3), TokenLogprob(1, -0.1, 1), TokenLogprob(2, -2.0, 2)],
        [TokenLogprob(6, -0.5, 1), TokenLogprob(6, -0.5, 1), TokenLogprob(3, -1.0, 2)],
    ]


def test_vllm_logprobs_without_alternatives() -> None:
    logprobs = {"token_logprobs": [-3.0], "top_logprobs": [{"token_id:5": -3.0}]}
    [output] = read_all(
        VLLM.reader(request(logprobs=0)), vllm_chunk([5], "length", logprobs=logprobs)
    )
    assert output.logprobs == [[TokenLogprob(5, -3.0, 1)]]


def test_vllm_prompt_logprobs() -> None:
    given = [
        None,
        {"2": {"logprob": -4.0, "rank": 50}, "7": {"logprob": -0.2, "rank": 1}},
        {"3": {"logprob": -0.3, "rank": 1}},
    ]
    whole = vllm_chunk([5], "length", prompt_logprobs=given)
    [output] = read_all(VLLM.reader(request(prompt_logprobs=1)), whole)
    assert output.prompt_logprobs == [
        None,
        [TokenLogprob(2, -4.0, 50), TokenLogprob(7, -0.2, 1)],
        [TokenLogprob(3, -0.3, 1), TokenLogprob(3, -0.3, 1)],
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": None},
        {"logprobs": {"token_logprobs": [], "top_logprobs": []}},
        {"logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{" hi": -1.0}]}},
        {"logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{}]}, "prompt_logprobs": [None]},
    ],
)
def test_vllm_answers_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError):
        read_all(VLLM.reader(request(logprobs=1)), vllm_chunk([5], "length", **fields))


# SGLang


def test_sglang_is_told_everything() -> None:
    body = SGLANG.body(
        request(b"\x01", min_tokens=2, seed=7, logit_bias={5: 1.0}, logprobs=2, temperature=0.0),
        "m",
    )
    params = body.pop("sampling_params")
    assert body == {
        "input_ids": [1, 2, 3],
        "stream": True,
        "return_logprob": True,
        "top_logprobs_num": 2,
        "logprob_start_len": -1,
        "extra_key": "01",
    }
    assert (params["max_new_tokens"], params["min_new_tokens"]) == (8, 2)
    assert (params["sampling_seed"], params["logit_bias"]) == (7, {"5": 1.0})
    assert params["stop_token_ids"] == [9]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"allowed_token_ids": (1,)}, "allowed_token_ids"), ({"bad_words_ids": ((1,),)}, "bad_words")],
)
def test_sglang_refuses_what_it_lacks(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match="SGLang") as caught:
        SGLANG.body(request(**fields), "m")
    assert caught.value.param == param


def sglang_event(ids: list[int], total: int, finish: object = None, **meta: Any) -> dict[str, Any]:
    info = {"id": "x", "completion_tokens": total, "finish_reason": finish, **meta}
    return {"text": "", "output_ids": ids, "meta_info": info}


STOP = {"type": "stop", "matched": 9}


@pytest.mark.parametrize(
    "events",
    [
        [sglang_event([5], 1), sglang_event([6, 7], 3), sglang_event([9], 4, STOP)],
        [sglang_event([5], 1), sglang_event([5, 6, 7], 3), sglang_event([5, 6, 7, 9], 4, STOP)],
    ],
    ids=["incremental", "cumulative"],
)
def test_sglang_ids_of_both_kinds_of_stream(events: list[dict[str, Any]]) -> None:
    outputs = read_all(SGLANG.reader(request()), *events)
    assert [output.token_ids for output in outputs] == [[5], [6, 7], [9]]
    assert [output.finish_reason for output in outputs] == [None, None, "stop"]
    assert [output.stop_token_id for output in outputs] == [None, None, 9]


def test_sglang_logprobs_and_cached_tokens() -> None:
    first = sglang_event(
        [5],
        1,
        output_token_logprobs=[[-0.5, 5, None]],
        output_top_logprobs=[[[-0.5, 5, None], [-1.0, 6, None]]],
        input_token_logprobs=[[None, 1, None], [-2.0, 2, None], [-3.0, 3, None]],
        input_top_logprobs=[None, [[-0.1, 8, None]], [[-3.0, 3, None]]],
        cached_tokens=2,
    )
    last = sglang_event(
        [5, 6],
        2,
        {"type": "length", "length": 2},
        output_token_logprobs=[[-0.5, 5, None], [-0.7, 6, None]],
        output_top_logprobs=[[[-0.5, 5, None]], [[-0.7, 6, None]]],
        cached_tokens=2,
    )
    one, two = read_all(SGLANG.reader(request(logprobs=1, prompt_logprobs=1)), first, last)
    assert one.logprobs == [[TokenLogprob(5, -0.5, 1), TokenLogprob(5, -0.5, 1)]]
    assert two.logprobs == [[TokenLogprob(6, -0.7, 1), TokenLogprob(6, -0.7, 1)]]
    assert one.prompt_logprobs == [
        None,
        [TokenLogprob(2, -2.0, 2), TokenLogprob(8, -0.1, 1)],
        [TokenLogprob(3, -3.0, 1), TokenLogprob(3, -3.0, 1)],
    ]
    assert two.prompt_logprobs is None
    assert two.num_cached_tokens == 2


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, RequestError), (503, UpstreamBusyError), (500, UpstreamError), (None, UpstreamError)],
)
def test_sglang_aborts(status: int | None, raised: type[Exception]) -> None:
    reason = {"type": "abort", "message": "too long", "status_code": status}
    with pytest.raises(raised, match="too long"):
        SGLANG.reader(request()).read(sglang_event([], 0, reason))


def test_sglang_answers_that_are_none() -> None:
    for event in ({}, {"output_ids": [1]}, {"output_ids": [1], "meta_info": 5}):
        with pytest.raises(UpstreamError):
            SGLANG.reader(request()).read(event)


# Structured output

THINK_END = 77
FORMS: list[tuple[StructuredKind, str, dict[str, Any], dict[str, Any]]] = [
    ("json_object", "", {"json_object": True}, {"json_schema": '{"type": "object"}'}),
    ("json_schema", '{"a":1}', {"json": {"a": 1}}, {"json_schema": '{"a":1}'}),
    ("regex", "[0-9]", {"regex": "[0-9]"}, {"regex": "[0-9]"}),
    ("grammar", 'root ::= "a"', {"grammar": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
    (
        "choice",
        '["ja", "\\"n\\"\\n", "世"]',
        {"choice": ["ja", '"n"\n', "世"]},
        {"ebnf": 'root ::= "ja" | "\\"n\\"\\n" | "世"'},
    ),
]


@pytest.mark.parametrize(("kind", "text", "of_vllm", "of_sglang"), FORMS)
@pytest.mark.parametrize("after", [(), (THINK_END,)])
def test_forms_are_told_in_each_dialect(
    kind: StructuredKind,
    text: str,
    of_vllm: dict[str, Any],
    of_sglang: dict[str, Any],
    after: tuple[int, ...],
) -> None:
    form = StructuredOutput(kind=kind, text=text, after_token_ids=after, prefix_token_ids=(1,))
    one = request(structured_output=form)
    if after:
        assert VLLM.body(one, "m")["structured_outputs"] == of_vllm
    else:
        with pytest.raises(RequestError, match="does not begin in thinking"):
            VLLM.body(one, "m")
    body = SGLANG.body(one, "m")
    assert body["require_reasoning"] == bool(after)
    assert of_sglang.items() <= body["sampling_params"].items()
    plain = SGLANG.body(request(), "m")
    assert "require_reasoning" not in plain
    assert "structured_outputs" not in VLLM.body(request(), "m")


@pytest.mark.parametrize("dialect", [VLLM, SGLANG])
def test_a_forced_call_needs_the_own_engine(dialect: VllmDialect | SglangDialect) -> None:
    form = StructuredOutput(kind="tool_calls", text="start: A", after_token_ids=(THINK_END,))
    with pytest.raises(RequestError, match="own engine") as caught:
        dialect.body(request(structured_output=form), "m")
    assert (caught.value.status, caught.value.param) == (400, "tool_choice")


@pytest.mark.parametrize("dialect", [VLLM, SGLANG])
def test_forms_together_with_tools_need_the_own_engine(
    dialect: VllmDialect | SglangDialect,
) -> None:
    form = StructuredOutput(kind="json_object", free_token_ids=(5,))
    with pytest.raises(RequestError, match="tools") as caught:
        dialect.body(request(structured_output=form), "m")
    assert (caught.value.status, caught.value.param) == (400, "response_format")


@pytest.mark.parametrize("dialect", [VLLM, SGLANG])
@pytest.mark.parametrize(
    ("ids", "reason", "fails"),
    [
        ([5, 9], "stop", True),
        ([THINK_END, 9], "stop", False),
        ([5, 6], "length", False),
    ],
)
def test_a_form_put_on_the_thinking_is_noticed(
    dialect: VllmDialect | SglangDialect, ids: list[int], reason: str, fails: bool
) -> None:
    form = StructuredOutput(kind="json_object", after_token_ids=(THINK_END,))
    reader = dialect.reader(request(structured_output=form))
    if dialect is VLLM:
        events = [vllm_chunk(ids[:1]), vllm_chunk(ids[1:], reason), vllm_usage(3)]
    else:
        end = {"type": reason, "matched": 9 if reason == "stop" else None}
        events = [sglang_event(ids[:1], 1), sglang_event(ids[1:], 2, end)]
    if not fails:
        assert read_all(reader, *events)[-1].finish_reason == reason
        return
    with pytest.raises(RequestError, match="--reasoning-parser minimax") as caught:
        read_all(reader, *events)
    assert caught.value.status == 502


KEYS = st.sampled_from(
    [
        *("choices", "token_ids", "finish_reason", "logprobs", "token_logprobs", "top_logprobs"),
        *("prompt_logprobs", "usage", "prompt_tokens_details", "cached_tokens", "error", "code"),
        *("message", "output_ids", "meta_info", "type", "matched", "completion_tokens", "5"),
        *("output_token_logprobs", "output_top_logprobs", "input_token_logprobs"),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["stop", "x"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(st.lists(st.dictionaries(KEYS, JSON, max_size=5), max_size=3), st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_answer_breaks_a_reader(events: list[dict[str, Any]], wants_logprobs: bool) -> None:
    count = 2 if wants_logprobs else None
    for dialect in (VLLM, SGLANG):
        reader = dialect.reader(request(logprobs=count, prompt_logprobs=count))
        with contextlib.suppress(M2Error):
            read_all(reader, *events)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
@settings(max_examples=100, deadline=None)
def test_no_field_breaks_a_reader(value: Any) -> None:
    """One field of a right answer at a time."""
    right = vllm_chunk([5], "stop", logprobs={"token_logprobs": [-1.0], "top_logprobs": [{}]})
    sides = sglang_event([5], 1, STOP, cached_tokens=0, output_token_logprobs=[[-1.0, 5, None]])
    for dialect, event in ((VLLM, right), (SGLANG, sides)):
        part = event["choices"][0] if "choices" in event else event["meta_info"]
        for field in list(part):
            broken = {**part, field: value}
            key = "choices" if "choices" in event else "meta_info"
            whole = {**event, key: [broken] if key == "choices" else broken, "usage": value}
            with contextlib.suppress(M2Error):
                read_all(dialect.reader(request(logprobs=1)), whole)
