"""Chat with the official client against the real HTTP server and a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import MAX_MODEL_LEN, FakeEngine, says, tiny_tokenizer
from fake_server import MODEL, FakeServer, fake_server, sse
from openai import OpenAI
from tool_calls import CALLS, TOOLS

QUESTION = {"role": "user", "content": "Weather?"}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


@pytest.fixture
def engine(server: FakeServer) -> FakeEngine:
    server.engine.script = says("Hi</think>Hello")
    server.engine.num_cached_tokens = 0
    server.engine.requests.clear()
    return server.engine


@pytest.fixture
def client(server: FakeServer, engine: FakeEngine) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


def whole(client: OpenAI, **fields: Any) -> dict[str, Any]:
    answer = client.chat.completions.create(model=MODEL, messages=[QUESTION], **fields)
    message = answer.choices[0].message
    assert message.model_extra["reasoning"] == message.model_extra["reasoning_content"]
    return {
        "reasoning": message.model_extra["reasoning_content"] or "",
        "content": message.content or "",
        "calls": [(c.function.name, c.function.arguments) for c in message.tool_calls or []],
        "finish_reason": answer.choices[0].finish_reason,
        "usage": answer.usage.model_dump(),
    }


def streamed(client: OpenAI, **fields: Any) -> tuple[dict[str, Any], int]:
    result: dict[str, Any] = {"reasoning": "", "content": "", "finish_reason": None, "usage": None}
    calls: dict[int, list[str]] = {}
    ids: list[str] = []
    num_chunks = 0
    for chunk in client.chat.completions.create(
        model=MODEL,
        messages=[QUESTION],
        stream=True,
        stream_options={"include_usage": True},
        **fields,
    ):
        num_chunks += 1
        assert (chunk.usage is None) == bool(chunk.choices)
        if chunk.usage:
            result["usage"] = chunk.usage.model_dump()
        for choice in chunk.choices:
            assert (choice.delta.role == "assistant") == (num_chunks == 1)
            result["reasoning"] += choice.delta.model_extra.get("reasoning_content") or ""
            result["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
                ids += [call.id] if call.id else []
            result["finish_reason"] = choice.finish_reason or result["finish_reason"]
    assert len(ids) == len(set(ids)) == len(calls)
    assert all(id.startswith("call_") for id in ids)
    return {**result, "calls": [tuple(calls[i]) for i in sorted(calls)]}, num_chunks


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_streamed_reasoning_and_two_calls_are_the_whole_answer(
    client: OpenAI, engine: FakeEngine, chunk: int
) -> None:
    engine.script = says(CALLS, chunk=chunk)
    answer = whole(client, tools=TOOLS)
    assert answer["reasoning"] == "The user wants two things.\nI call both tools."
    assert answer["content"] == "One moment."
    assert [(name, json.loads(arguments)) for name, arguments in answer["calls"]] == [
        ("get_weather", {"city": "上海", "days": 3}),
        ("search", {"query": 'a "quoted" & <b>line</b>\nnext'}),
    ]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
    events, num_chunks = streamed(client, tools=TOOLS)
    assert events == answer
    assert num_chunks > (20 if chunk == 1 else 5)


def test_parallel_tool_calls_false_ends_after_the_first(client: OpenAI, engine: FakeEngine) -> None:
    engine.script = says(CALLS)
    answer = whole(client, tools=TOOLS, parallel_tool_calls=False)
    assert [name for name, _ in answer["calls"]] == ["get_weather"]
    assert json.loads(answer["calls"][0][1]) == {"city": "上海", "days": 3}
    assert answer["finish_reason"] == "tool_calls"
    assert engine.aborted[-1] == engine.requests[-1].request_id
    assert streamed(client, tools=TOOLS, parallel_tool_calls=False)[0] == answer


def test_tool_choice_none_offers_no_tools(client: OpenAI, engine: FakeEngine) -> None:
    whole(client)
    without = engine.requests[-1].prompt_token_ids
    answer = whole(client, tools=TOOLS, tool_choice="none")
    assert engine.requests[-1].prompt_token_ids == without
    assert answer["calls"] == []


def test_cut_off_arguments_stay_valid_json(client: OpenAI, engine: FakeEngine) -> None:
    engine.script = says(CALLS, finish_reason="length")
    for max_tokens in range(30, 104, 5):
        answer = whole(client, tools=TOOLS, max_tokens=max_tokens)
        assert answer["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == max_tokens
        for _, arguments in answer["calls"]:
            assert isinstance(json.loads(arguments), dict)


def test_reasoning_can_be_left_out_or_kept_in_content(client: OpenAI, server: FakeServer) -> None:
    assert whole(client, extra_body={"include_reasoning": False})["reasoning"] == ""
    kept = whole(client, extra_body={"reasoning_split": False})
    assert kept["reasoning"] == ""
    assert kept["content"].startswith("<think>")
    assert "Hi</think>Hello" in kept["content"]
    assert streamed(client, extra_body={"reasoning_split": False})[0] == kept


def test_append_think_keeps_both_tags_with_tools(engine: FakeEngine) -> None:
    own = FakeEngine(says("abc\n</think>\n\nHi"))
    with fake_server(own, reasoning_parser="minimax_m2_append_think") as server:
        for tools in ([], TOOLS):
            message = server.chat(tools=tools).json()["choices"][0]["message"]
            assert message["reasoning_content"] is None
            assert message["content"] == "<think>abc\n</think>\n\nHi"


def test_n_choices_have_their_own_seeds_and_one_prompt(client: OpenAI, engine: FakeEngine) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[QUESTION], n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(r.sampling.seed for r in engine.requests) == [7, 8, 9]
    assert len({r.request_id for r in engine.requests}) == 3
    assert answer.usage.prompt_tokens == len(engine.requests[0].prompt_token_ids)
    assert answer.usage.completion_tokens == 3 * 8


def test_streamed_n_choices_are_told_apart(server: FakeServer, engine: FakeEngine) -> None:
    chunks = [e for e in sse(server.chat(stream=True, n=2)) if e != "[DONE]"]
    for index in (0, 1):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in choices) == "Hello"
        assert choices[-1]["finish_reason"] == "stop"


def test_logprobs_of_every_token(client: OpenAI, engine: FakeEngine) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert [token.token for token in content[:3]] == ["H", "i", "</think>"]
    assert content[0].bytes == [72]
    assert content[0].logprob == -0.5
    assert [top.logprob for top in content[0].top_logprobs] == [-1.0, -2.0]
    pieces = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=[QUESTION], logprobs=True, top_logprobs=2, stream=True
    ):
        pieces += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert pieces == content


def test_token_ids_and_prompt_logprobs_on_request(server: FakeServer, engine: FakeEngine) -> None:
    answer = server.chat(return_token_ids=True, prompt_logprobs=1).json()
    sent = engine.requests[-1].prompt_token_ids
    assert answer["prompt_token_ids"] == sent
    ids = tiny_tokenizer().encode("Hi</think>Hello", allow_control=True)
    assert answer["choices"][0]["token_ids"] == [*ids, tiny_tokenizer().control.turn_end]
    assert len(answer["prompt_logprobs"]) == len(sent)
    assert answer["prompt_logprobs"][0] is None
    assert answer["prompt_logprobs"][1][str(sent[1])]["rank"] == 1
    chunks = [e for e in sse(server.chat(return_token_ids=True, stream=True)) if e != "[DONE]"]
    assert chunks[0]["prompt_token_ids"] == sent
    streamed_ids = [id for c in chunks for id in c["choices"][0].get("token_ids", [])]
    assert streamed_ids == answer["choices"][0]["token_ids"]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_stop_string_ends_the_answer_and_the_engine(
    server: FakeServer, engine: FakeEngine, chunk: int
) -> None:
    engine.script = says("Hi</think>Hello there, friend", chunk=chunk)
    for stop, content in (("there", "Hello "), (["zzz", "lo th"], "Hel"), ("</think>", None)):
        choice = server.chat(stop=stop).json()["choices"][0]
        assert choice["message"]["content"] == content
        assert choice["message"]["reasoning_content"] == "Hi"
        assert choice["finish_reason"] == "stop"
        assert choice["stop_reason"] == (stop if isinstance(stop, str) else stop[1])
    shown = server.chat(stop="there", include_stop_str_in_output=True).json()["choices"][0]
    assert shown["message"]["content"] == "Hello there"
    chunks = [e for e in sse(server.chat(stop="there", stream=True)) if e != "[DONE]"]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == "Hello "
    if chunk < 100:
        assert engine.requests[-1].request_id in engine.aborted


def test_stop_strings_wait_for_min_tokens(server: FakeServer, engine: FakeEngine) -> None:
    engine.script = says("</think>a b a b a b")
    stopped = server.chat(stop="b").json()["choices"][0]
    assert stopped["message"]["content"] == "a "
    num_tokens = len(tiny_tokenizer().encode("</think>a b", allow_control=True))
    later = server.chat(stop="b", min_tokens=num_tokens).json()["choices"][0]
    assert later["message"]["content"] == "a b a "


def test_sampling_defaults_are_the_models_and_can_be_changed(
    server: FakeServer, engine: FakeEngine
) -> None:
    server.chat()
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 0.95, 40)
    assert sampling.eos_token_ids == (tiny_tokenizer().control.turn_end,)
    assert sampling.max_tokens == MAX_MODEL_LEN - len(engine.requests[-1].prompt_token_ids)
    server.chat(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        seed=-5,
        max_tokens=9,
        max_completion_tokens=11,
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[5],
        logit_bias={"7": -100},
        allowed_token_ids=[1, 2],
        bad_words=["bad"],
        top_logprobs=3,
        logprobs=True,
    )
    sampling = engine.requests[-1].sampling
    assert sampling.temperature == 0
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, -1, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1, 2)
    assert (sampling.repetition_penalty, sampling.seed) == (1.1, -5)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos) == (11, 2, True)
    assert sampling.stop_token_ids == (5,)
    assert sampling.logit_bias == {7: -100.0}
    assert sampling.allowed_token_ids == (1, 2)
    encode = tiny_tokenizer().encode
    assert sampling.bad_words_ids == (tuple(encode("bad")), tuple(encode(" bad")))
    assert sampling.logprobs == 3


def test_what_real_clients_send_along_is_accepted(server: FakeServer) -> None:
    answer = server.chat(
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        prompt_cache_key="k",
        reasoning_effort="high",
        parallel_tool_calls=True,
        tool_choice="auto",
        response_format={"type": "text"},
        modalities=["text"],
        functions=None,
        suffix=None,
        never_heard_of_it=None,
        stop=None,
        n=None,
        thinking={"type": "enabled"},
        chat_template_kwargs={"enable_thinking": True},
    )
    assert answer.status_code == 200, answer.text


def test_cached_tokens_are_told(server: FakeServer, engine: FakeEngine) -> None:
    engine.num_cached_tokens = 48
    usage = server.chat(n=2).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 48}


def test_continuous_usage_grows(server: FakeServer, engine: FakeEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = [e for e in sse(server.chat(stream=True, stream_options=options)) if e != "[DONE]"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 8


def test_the_answer_goes_back_in_and_continues(client: OpenAI, engine: FakeEngine) -> None:
    engine.script = says(CALLS)
    first = client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=TOOLS)
    message = first.choices[0].message.model_dump(exclude_none=True)
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        for call in reversed(message["tool_calls"])
    ]
    client.chat.completions.create(model=MODEL, messages=[QUESTION, message, *results], tools=TOOLS)
    # Tools come first in a prompt: what was said before is its prefix, and the prefix cache holds.
    earlier, later = (request.prompt_token_ids for request in engine.requests[-2:])
    assert later[: len(earlier)] == earlier
    text = tiny_tokenizer().decode(later)
    assert "I call both tools.\n</think>" in text
    assert text.endswith(
        "]~b]tool\n<response>sunny</response>\n<response>sunny</response>[e~[\n]~b]ai\n<think>\n"
    )


def test_continue_final_message(server: FakeServer, engine: FakeEngine) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "It is"}]
    engine.script = says(" sunny")
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    answer = server.chat(messages=messages, **fields).json()["choices"][0]["message"]
    assert tiny_tokenizer().decode(engine.requests[-1].prompt_token_ids).endswith("It is")
    assert answer["content"] == " sunny"
    assert answer["reasoning_content"] is None


def test_salts_separate_and_are_hashed(server: FakeServer, engine: FakeEngine) -> None:
    for salt in (None, "a", "b", "a"):
        server.chat(cache_salt=salt)
    none, a, b, again = (request.cache_salt for request in engine.requests[-4:])
    assert none == b""
    assert a == again
    assert len({none, a, b}) == 3
    assert len(a) == len(b) == 32


def test_request_ids_are_labels_only(server: FakeServer, engine: FakeEngine) -> None:
    named = server.chat(request_id="my-1")
    assert named.json()["id"] == "chatcmpl-my-1"
    assert named.headers["x-request-id"] == "chatcmpl-my-1"
    header = server.post(
        "/v1/chat/completions",
        {"model": MODEL, "messages": [QUESTION]},
        **{"X-Request-Id": "my-1"},
    )
    assert header.json()["id"] == "chatcmpl-my-1"
    assert all("my-1" not in request.request_id for request in engine.requests)
    odd = server.client.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [QUESTION]},
        headers={"X-Request-Id": "a b\x7fc"},
    )
    assert odd.status_code in (200, 400)
    assert "\x7f" not in odd.text


def test_models_as_the_client_sees_them(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "m2"]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.body["code"] == "model_not_found"
    assert MODEL in caught.value.body["message"]


def test_the_clients_exceptions_have_the_right_type(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=[QUESTION])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "wizard", "content": "x"}])
    assert caught.value.param == "messages[0].role"
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "foo": 1}, "messages[0].foo"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "bar": 1}]},
            "messages[0].content[0].bar",
        ),
    ],
)
def test_an_unknown_field_of_a_message_is_refused_by_name(message: Any, param: str) -> None:
    with fake_server(FakeEngine()) as server:
        answer = server.chat(messages=[message])
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


def test_what_clients_attach_to_messages_is_accepted() -> None:
    message = {"role": "user", "name": "ann", "refusal": None, "id": "1"}
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    with fake_server(FakeEngine()) as server:
        assert server.chat(messages=[{**message, "content": [part]}]).status_code == 200
