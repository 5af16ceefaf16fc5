"""The tokens a form leaves at each point of an answer, against plain enumeration."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_engine import VOCAB_SIZE, tiny_tokenizer
from tiny_tokenizer import ordinary_vocab_size, write_tokenizer

from m2serve.engine.request import EngineRequest, SamplingParams, StructuredOutput
from m2serve.engine.sampler import NOTHING_LEFT, Sampler
from m2serve.engine.sequence import Sequence
from m2serve.engine.structured_output_masks import TOO_COMPLEX, StructuredOutputMasks

TOKENIZER = tiny_tokenizer()
CONTROL = TOKENIZER.control
EOS = CONTROL.turn_end
USED = TOKENIZER.used_vocab_size
NUM_ORDINARY = ordinary_vocab_size(VOCAB_SIZE)
PIECES = {i: piece for i in range(NUM_ORDINARY) if (piece := TOKENIZER.token_bytes(i))}
BREAKS = tuple(TOKENIZER.encode("\n\n"))
PERSON = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "kind": {"enum": ["a", "bc"]},
        "tags": {"type": "array", "items": {"enum": [1, None]}, "maxItems": 2},
    },
    "required": ["ok", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> StructuredOutputMasks:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, VOCAB_SIZE)
    return StructuredOutputMasks(folder)


def sequence(form: StructuredOutput, output: tuple[int, ...] = (), **fields: Any) -> Sequence:
    sampling = {"max_tokens": 99, "eos_token_ids": (EOS,), "temperature": 0.0, **fields}
    request = EngineRequest(
        request_id="r",
        prompt_token_ids=[1, 2, CONTROL.think_end],
        sampling=SamplingParams(structured_output=form, **sampling),
    )
    made = Sequence(request, arrival=0, random_seed=0)
    for token_id in output:
        made.append(token_id)
    return made


def allowed(masks: StructuredOutputMasks, of: Sequence) -> set[int]:
    row = torch.zeros(USED)
    assert masks.apply(row, of) is None
    assert bool(((row == 0) | (row == -math.inf)).all())
    return set((row == 0).nonzero()[:, 0].tolist())


def continuations(texts: list[str], begun: bytes) -> set[int]:
    """The ids behind `begun` that keep it the start of one of the texts, and the end if it is."""
    all_bytes = [text.encode() for text in texts]
    rests = [text[len(begun) :] for text in all_bytes if text.startswith(begun)]
    found = {i for i, piece in PIECES.items() if any(rest.startswith(piece) for rest in rests)}
    return found | ({EOS} if b"" in rests else set())


def first_bytes(ids: set[int]) -> set[bytes]:
    return {b"end" if i == EOS else PIECES[i][:1] for i in ids}


YES = ["yes", "yet", "no", "世界"]
LANGUAGES: list[tuple[StructuredOutput, list[str]]] = [
    (StructuredOutput(kind="choice", text=json.dumps(YES)), YES),
    (
        StructuredOutput(kind="regex", text="(the |a )?[ab]{1,2}!"),
        [
            f"{article}{''.join(letters)}!"
            for article in ("the ", "a ", "")
            for count in (1, 2)
            for letters in itertools.product("ab", repeat=count)
        ],
    ),
    (
        StructuredOutput(kind="json_schema", text='{"enum": ["north", "no", 12, 125, null, true]}'),
        ['"north"', '"no"', "12", "125", "null", "true"],
    ),
    (
        StructuredOutput(kind="grammar", text='root ::= "get" rest\nrest ::= "_weather" | "ting"'),
        ["get_weather", "getting"],
    ),
]


@pytest.mark.parametrize(("form", "texts"), LANGUAGES, ids=lambda value: str(value)[:40])
def test_the_mask_is_what_enumeration_says(
    masks: StructuredOutputMasks, form: StructuredOutput, texts: list[str]
) -> None:
    rng = random.Random(0)
    for _ in range(6):
        one = sequence(form)
        while True:
            begun = b"".join(TOKENIZER.token_bytes(i) for i in one.output_token_ids)
            found, right = allowed(masks, one), continuations(texts, begun)
            # Where only one text is possible llguidance leaves the one way to write it that the
            # tokenizer would choose; no text is lost by that.
            assert found <= right, begun
            assert first_bytes(found) == first_bytes(right), begun
            token_id = rng.choice(sorted(found))
            if token_id == EOS:
                break
            one.append(token_id)
        assert begun.decode() in texts


def test_random_tokens_make_valid_json(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(kind="json_schema", text=json.dumps(PERSON))
    rng = random.Random(1)
    for _ in range(5):
        one = sequence(form)
        while (token_id := rng.choice(sorted(allowed(masks, one)))) != EOS:
            one.append(token_id)
        value = json.loads(TOKENIZER.decode(one.output_token_ids))
        assert set(value) == {"ok", "kind", "tags"}
        assert (type(value["ok"]), value["kind"] in ("a", "bc")) == (bool, True)


def test_a_sequence_read_anew_or_at_once_has_the_same_mask(masks: StructuredOutputMasks) -> None:
    """As after a preemption, when nothing but the ids is known."""
    form = StructuredOutput(kind="json_object")
    ids = tuple(TOKENIZER.encode('{"name": "Ada", "list": [1, 2'))
    stepwise = sequence(form)
    for token_id in ids:
        assert token_id in allowed(masks, stepwise)
        stepwise.append(token_id)
    assert allowed(masks, stepwise) == allowed(masks, sequence(form, ids))
    assert allowed(masks, stepwise) == allowed(masks, stepwise)


def test_sequences_of_one_form_do_not_move_each_other(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(kind="choice", text='["ab", "cd"]')
    first, second = sequence(form), sequence(form)
    at_start = allowed(masks, first)
    first.append(ord("a"))
    assert allowed(masks, first) == {ord("b")}
    assert allowed(masks, second) == at_start != {ord("b")}


def test_the_form_waits_for_the_end_of_thinking(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(
        kind="choice",
        text='["a"]',
        after_token_ids=(CONTROL.think_end,),
        prefix_token_ids=(*BREAKS, ord("x"), ord("y")),
    )
    one = sequence(form)
    for token_id in (5, ord("a"), 7):
        assert allowed(masks, one) == set(range(USED)) - {EOS}, "thinking is free but has to end"
        one.append(token_id)
    one.append(CONTROL.think_end)
    for token_id in (*BREAKS, ord("x"), ord("y"), ord("a"), EOS):
        assert allowed(masks, one) == {token_id}
        one.append(token_id)


@pytest.mark.parametrize("thinks", [True, False])
def test_a_tool_call_may_come_instead(masks: StructuredOutputMasks, thinks: bool) -> None:
    form = StructuredOutput(
        kind="choice",
        text='["ab"]',
        after_token_ids=(CONTROL.think_end,) if thinks else (),
        prefix_token_ids=BREAKS if thinks else (),
        free_token_ids=(CONTROL.call_start,),
    )
    before = (9, CONTROL.think_end, *BREAKS) if thinks else ()
    everything = set(range(USED))
    assert CONTROL.call_start in allowed(masks, sequence(form, before))
    assert allowed(masks, sequence(form, (*before, CONTROL.call_start, 7))) == everything
    assert CONTROL.call_start not in allowed(masks, sequence(form, (*before, ord("a"))))
    in_thinking = allowed(masks, sequence(form, (CONTROL.call_start, 7)))
    assert in_thinking == everything


def test_a_tool_call_may_be_announced_in_place_of_the_prefix(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(
        kind="choice",
        text='["ab"]',
        after_token_ids=(CONTROL.think_end,),
        prefix_token_ids=(ord("x"), ord("y")),
        free_token_ids=(CONTROL.call_start,),
        free_prefix_token_ids=(ord("z"),),
    )
    thought = (9, CONTROL.think_end)
    assert allowed(masks, sequence(form, thought)) == {ord("x"), ord("z")}
    assert allowed(masks, sequence(form, (*thought, ord("x")))) == {ord("y")}
    announced = (*thought, ord("z"))
    assert allowed(masks, sequence(form, announced)) == {CONTROL.call_start}
    assert allowed(masks, sequence(form, (*announced, CONTROL.call_start))) == set(range(USED))


def test_stop_ids_end_a_complete_answer_too(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(kind="choice", text='["a", "ab"]')
    stops = {"stop_token_ids": (ord("!"), CONTROL.call_end)}
    assert allowed(masks, sequence(form, (ord("a"),), **stops)) == {
        *(ord("b"), EOS, ord("!"), CONTROL.call_end)
    }
    assert ord("!") not in allowed(masks, sequence(form, **stops))


def test_an_end_id_that_comes_later_counts_too(masks: StructuredOutputMasks) -> None:
    """The tokenizer was told of another one."""
    form = StructuredOutput(kind="choice", text='["a"]')
    one = sequence(form, (ord("a"),), eos_token_ids=(CONTROL.bos,))
    assert allowed(masks, one) == {CONTROL.bos}


def test_what_breaks_the_form_is_an_error(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(kind="choice", text='["a"]')
    assert masks.apply(torch.zeros(USED), sequence(form, (ord("b"),))) == TOO_COMPLEX
    wrong = StructuredOutput(kind="regex", text="(")
    assert "cannot be followed" in (masks.apply(torch.zeros(USED), sequence(wrong)) or "")


def test_too_much_for_the_limits_is_an_error(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(kind="regex", text="(a?){3000}a{3000}")
    one = sequence(form)
    problems = []
    for _ in range(5):
        problems.append(masks.apply(torch.zeros(USED), one))
        one.append(ord("a"))
    assert problems[-1] == TOO_COMPLEX


def test_a_model_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    form = StructuredOutput(kind="json_object")
    problem = StructuredOutputMasks(tmp_path).apply(torch.zeros(USED), sequence(form))
    assert "tokenizer.json" in (problem or "")


# In the sampler


def test_a_batch_mixes_forms_and_free_rows(masks: StructuredOutputMasks) -> None:
    logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    forms = [
        StructuredOutput(kind="choice", text='["yes"]'),
        None,
        StructuredOutput(kind="regex", text="[0-9]"),
        StructuredOutput(kind="regex", text="("),
    ]
    sequences = [
        sequence(form, logprobs=1, logit_bias={EOS: 100.0})  # type: ignore[arg-type]
        for form in forms
    ]
    results = Sampler(USED, masks).sample(logits.clone(), sequences)
    assert TOKENIZER.token_bytes(results[0].token_id or 0)[:1] == b"y"
    assert results[1].token_id == EOS, "the bias wins where there is no form"
    assert TOKENIZER.decode([results[2].token_id or 0]).isdigit()
    assert results[3].token_id is None
    assert "cannot be followed" in (results[3].error or "")
    raw = logits[:, :USED].log_softmax(1)
    for row in (0, 1, 2):
        chosen, best = results[row].logprobs or []
        assert chosen.logprob == pytest.approx(float(raw[row, chosen.token_id]), abs=1e-5)
        assert best.token_id == int(raw[row].argmax())


def test_forced_ids_win_and_nothing_left_is_an_error(masks: StructuredOutputMasks) -> None:
    form = StructuredOutput(kind="choice", text='["yes"]')
    forced = sequence(form, forced_token_ids=(5, 6))
    clash = sequence(form, allowed_token_ids=(ord("n"), EOS))
    results = Sampler(USED, masks).sample(torch.zeros(2, VOCAB_SIZE), [forced, clash])
    assert results[0].token_id == 5
    assert results[1].error == NOTHING_LEFT
