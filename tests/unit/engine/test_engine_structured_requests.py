"""Structured output through the whole engine on a tiny random checkpoint, and its bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine, tiny_tokenizer

from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.engine import Completion, Engine
from m2serve.engine.request import EngineRequest, SamplingParams, StructuredOutput
from m2serve.engine.validation import check_request
from m2serve.errors import RequestError

BLOCK_BYTES = 16 * 2 * 2 * 2 * 16 * 4  # 16 tokens, k and v, 2 layers, 2 heads of 16, float32
PROMPTS = [[7 * i + j for j in range(20 + i)] for i in range(4)]
PLACE = StructuredOutput(
    kind="json_schema",
    text=json.dumps(
        {
            "type": "object",
            "properties": {
                "land": {"enum": ["north", "south"]},
                "dry": {"type": "boolean"},
                "level": {"enum": [1, 20, None]},
            },
            "required": ["land", "dry", "level"],
            "additionalProperties": False,
        }
    ),
)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def load(folder: Path, num_blocks: int = 200) -> Engine:
    return Engine.load(
        folder,
        dtype="float32",
        kv_cache_memory_bytes=num_blocks * BLOCK_BYTES,
        max_model_len=128,
        used_vocab_size=Tokenizer.load(folder).used_vocab_size,
    )


def structured(tokenizer: Tokenizer, form: StructuredOutput = PLACE, **more: Any) -> SamplingParams:
    fields = {"max_tokens": 60, "eos_token_ids": (tokenizer.control.turn_end,), "seed": 3, **more}
    return SamplingParams(structured_output=form, **fields)


def run(engine: Engine, samplings: list[SamplingParams]) -> list[Completion]:
    """One request of each kind at the same time."""
    completions = [Completion(prompt) for prompt in PROMPTS[: len(samplings)]]
    for i, sampling in enumerate(samplings):
        engine.add(EngineRequest(request_id=str(i), prompt_token_ids=PROMPTS[i], sampling=sampling))
    while engine.has_work():
        for output in engine.step():
            completions[int(output.request_id)].take(output)
    return completions


def place(tokenizer: Tokenizer, completion: Completion) -> dict[str, Any]:
    assert completion.error is None
    assert (completion.finish_reason, completion.token_ids[-1]) == (
        "stop",
        tokenizer.control.turn_end,
    )
    value = json.loads(tokenizer.decode(completion.token_ids[:-1]))
    assert set(value) == {"land", "dry", "level"}
    assert (value["land"] in ("north", "south"), type(value["dry"])) == (True, bool)
    return value


def test_structured_and_free_requests_do_not_touch_each_other(
    folder: Path, tokenizer: Tokenizer
) -> None:
    """In one batch, one by one, and in a cache so small that they preempt each other."""
    free = SamplingParams(max_tokens=60, seed=3, ignore_eos=True)
    samplings = [structured(tokenizer), free, structured(tokenizer, seed=4), free]
    engine = load(folder)
    together = run(engine, samplings)
    for index in (0, 2):
        place(tokenizer, together[index])
    assert [len(together[i].token_ids) for i in (1, 3)] == [60, 60]
    alone = [engine.generate([PROMPTS[i]], samplings[i])[0] for i in range(4)]
    assert [one.token_ids for one in alone] == [one.token_ids for one in together]
    small = load(folder, num_blocks=8)
    preempted = run(small, samplings)
    assert small.stats().num_preemptions > 0
    assert [one.token_ids for one in preempted] == [one.token_ids for one in together]


def test_thinking_is_free_and_the_answer_is_not(folder: Path, tokenizer: Tokenizer) -> None:
    control = tokenizer.control
    breaks = tuple(tokenizer.encode("\n\n"))
    form = msgspec.structs.replace(
        PLACE, after_token_ids=(control.think_end,), prefix_token_ids=breaks
    )
    engine = load(folder)
    [endless] = engine.generate([PROMPTS[0]], structured(tokenizer, form, max_tokens=40))
    assert (endless.finish_reason, len(endless.token_ids)) == ("length", 40)
    sampling = structured(tokenizer, form, logit_bias={control.think_end: 30.0})
    [found] = engine.generate([PROMPTS[0]], sampling)
    end = found.token_ids.index(control.think_end)
    assert tuple(found.token_ids[end + 1 : end + 1 + len(breaks)]) == breaks
    found.token_ids = found.token_ids[end + 1 + len(breaks) :]
    place(tokenizer, found)


def test_a_cut_answer_says_so_and_logprobs_are_the_models(
    folder: Path, tokenizer: Tokenizer
) -> None:
    engine = load(folder)
    [cut] = engine.generate([PROMPTS[0]], structured(tokenizer, max_tokens=3, logprobs=1))
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 3)
    plain = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)
    [free] = engine.generate([PROMPTS[0]], plain)
    assert cut.logprobs is not None
    assert free.logprobs is not None
    best, same = cut.logprobs[0][1], free.logprobs[0][1]
    assert (best.token_id, best.rank) == (same.token_id, 1)
    assert best.logprob == pytest.approx(same.logprob, abs=1e-4)


def test_a_wrong_form_fails_its_own_request_alone(folder: Path, tokenizer: Tokenizer) -> None:
    wrong = StructuredOutput(kind="regex", text="(")
    engine = load(folder)
    bad, good = run(engine, [structured(tokenizer, wrong), structured(tokenizer)])
    assert (bad.finish_reason, bad.token_ids) == ("error", [])
    assert "cannot be followed" in (bad.error or "")
    place(tokenizer, good)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ignore_eos": True}, "ignore_eos"),
        ({"eos_token_ids": ()}, "ignore_eos"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"form": StructuredOutput(kind="regex", text="a" * 70_000)}, "structured_output"),
        ({"form": StructuredOutput(kind="regex", after_token_ids=(9999,))}, "after_token_ids"),
        ({"form": StructuredOutput(kind="regex", prefix_token_ids=(-1,))}, "prefix_token_ids"),
        ({"form": StructuredOutput(kind="regex", free_token_ids=(5,) * 17)}, "free_token_ids"),
    ],
)
def test_what_cannot_hold_with_a_form_is_refused(fields: dict[str, Any], param: str) -> None:
    sampling = structured(tiny_tokenizer(), **fields)
    request = EngineRequest(request_id="r", prompt_token_ids=[1], sampling=sampling)
    with pytest.raises(RequestError) as caught:
        check_request(request, FakeEngine().info)
    assert caught.value.param == param
