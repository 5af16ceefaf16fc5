"""Plain completions, tokens and models through the real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import MAX_MODEL_LEN, FakeEngine, Say, says, tiny_tokenizer
from fake_server import MODEL, FakeServer, fake_server, sse
from openai import OpenAI


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server() as running:
        yield running


@pytest.fixture
def engine(server: FakeServer) -> FakeEngine:
    server.engine.script = says(" is blue")
    server.engine.requests.clear()
    return server.engine


def test_text_continues(server: FakeServer, engine: FakeEngine) -> None:
    answer = server.complete().json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == " is blue"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert engine.requests[-1].prompt_token_ids == tiny_tokenizer().encode("The sky")
    assert engine.requests[-1].sampling.max_tokens == 16
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_control_tokens_in_a_prompt_are_recognised(server: FakeServer, engine: FakeEngine) -> None:
    server.complete(prompt="]~b]user\nHi[e~[")
    control = tiny_tokenizer().control
    ids = engine.requests[-1].prompt_token_ids
    assert (ids[0], ids[-1]) == (control.turn_start, control.turn_end)


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("a", 1), ([5, 6], 1), (["a", "b"], 2), ([[5], [6], [7]], 3), (["a", [5]], 2)],
)
def test_every_form_of_prompt(
    server: FakeServer, engine: FakeEngine, prompt: Any, num_prompts: int
) -> None:
    answer = server.complete(prompt=prompt, n=2).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * num_prompts))
    assert len(engine.requests) == 2 * num_prompts


def test_choices_follow_their_prompts(server: FakeServer, engine: FakeEngine) -> None:
    def script(request: Any) -> list[Say]:
        return [Say(request.prompt_token_ids, "length")]

    engine.script = script
    choices = server.complete(prompt=["x", "y"], n=2).json()["choices"]
    assert [choice["text"] for choice in choices] == ["x", "x", "y", "y"]


def test_streamed_is_whole(server: FakeServer, engine: FakeEngine) -> None:
    fields = {"logprobs": 1, "echo": True, "n": 2}
    whole = server.complete(**fields).json()
    options = {"include_usage": True}
    events = sse(server.complete(stream=True, stream_options=options, **fields))
    assert events[-1] == "[DONE]"
    chunks: list[Any] = events[:-1]
    assert chunks[-1]["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        parts = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"] == "The sky is blue"
        for name, values in choice["logprobs"].items():
            assert [v for p in parts if p["logprobs"] for v in p["logprobs"][name]] == values
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


def test_logprobs_and_offsets_with_echo(server: FakeServer, engine: FakeEngine) -> None:
    choice = server.complete(prompt="Über", logprobs=1, echo=True).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "Über is blue"
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    lengths = {len(values) for values in logprobs.values()}
    assert lengths == {choice_length(logprobs)}
    num_prompt = len(engine.requests[-1].prompt_token_ids)
    assert logprobs["text_offset"][num_prompt] == len("Über")
    for token, offset in zip(
        logprobs["tokens"][num_prompt:-1], logprobs["text_offset"][num_prompt:-1], strict=True
    ):
        assert choice["text"][offset:].startswith(token)


def choice_length(logprobs: dict[str, list[Any]]) -> int:
    return len(logprobs["tokens"])


def test_scoring_a_prompt_without_generating(server: FakeServer, engine: FakeEngine) -> None:
    choice = server.complete(max_tokens=0, echo=True, logprobs=1).json()["choices"][0]
    assert choice["text"] == "The sky"
    assert len(choice["logprobs"]["tokens"]) == len(engine.requests[-1].prompt_token_ids)
    assert engine.requests[-1].sampling.max_tokens == 1
    assert engine.requests[-1].sampling.prompt_logprobs == 1


def test_stop_tokens_are_not_shown_unless_asked(server: FakeServer, engine: FakeEngine) -> None:
    ids = tiny_tokenizer().encode("ab")

    def script(request: Any) -> list[Say]:
        return [Say(ids, "stop", stop_token_id=ids[-1])]

    engine.script = script
    hidden = server.complete(stop_token_ids=[ids[-1]]).json()["choices"][0]
    assert hidden["text"] == tiny_tokenizer().decode(ids[:-1])
    assert hidden["stop_reason"] == ids[-1]
    shown = server.complete(stop_token_ids=[ids[-1]], include_stop_str_in_output=True).json()
    assert shown["choices"][0]["text"] == "ab"


def test_special_tokens_can_be_shown(server: FakeServer, engine: FakeEngine) -> None:
    text = "a[e~[b"
    engine.script = says(text, finish_reason="length")
    assert server.complete().json()["choices"][0]["text"] == "ab"
    shown = server.complete(skip_special_tokens=False).json()["choices"][0]
    assert shown["text"] == text


def test_half_characters_never_leave_the_server(server: FakeServer, engine: FakeEngine) -> None:
    engine.script = says("🦄日本", finish_reason="length")
    chunks = [e for e in sse(server.complete(stream=True)) if e != "[DONE]"]
    assert "".join(c["choices"][0]["text"] for c in chunks) == "🦄日本"
    assert all("\ufffd" not in c["choices"][0]["text"] for c in chunks)
    cut = server.complete(max_tokens=2).json()["choices"][0]
    assert cut["text"] == "\ufffd"
    assert cut["finish_reason"] == "length"


def test_harmless_old_fields(server: FakeServer, engine: FakeEngine) -> None:
    assert server.complete(best_of=1, suffix="", use_beam_search=False).status_code == 200


def test_the_official_client(server: FakeServer, engine: FakeEngine) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="x")
    answer = client.completions.create(model="m2", prompt="The sky", max_tokens=8, logprobs=1)
    assert answer.choices[0].text == " is blue"
    assert answer.model == "m2"
    stream = client.completions.create(model="m2", prompt="The sky", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == " is blue"


def test_tokenize_and_detokenize_are_inverse(server: FakeServer) -> None:
    text = "Hello ]~b]user\n世界"
    tokens = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == MAX_MODEL_LEN
    back = server.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": text}


def test_tokenize_messages_is_what_chat_sends(server: FakeServer, engine: FakeEngine) -> None:
    engine.script = says("</think>Hi")
    messages = [{"role": "user", "content": "]~b]not a turn"}]
    server.chat(messages=messages)
    tokens = server.post("/tokenize", {"messages": messages, "model": MODEL}).json()["tokens"]
    assert tokens == engine.requests[-1].prompt_token_ids


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": []}, {"prompt": 5}])
def test_tokenize_needs_one_input(server: FakeServer, body: dict[str, Any]) -> None:
    assert server.post("/tokenize", body).status_code == 400


@pytest.mark.parametrize("tokens", [[-1], [10**9], ["a"], None, 5, [True]])
def test_detokenize_refuses_bad_ids(server: FakeServer, tokens: Any) -> None:
    assert server.post("/detokenize", {"tokens": tokens}).status_code == 400


def test_tokens_of_logprobs_as_ids(server: FakeServer, engine: FakeEngine) -> None:
    body = {"logprobs": 1, "return_token_ids": True, "return_tokens_as_token_ids": True}
    choice = server.complete(**body).json()["choices"][0]
    ids = choice["token_ids"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in ids]
    for id, top in zip(ids, choice["logprobs"]["top_logprobs"], strict=True):
        assert set(top) == {f"token_id:{id}", "token_id:0"}
