"""The engine on a tiny checkpoint in float32: whatever the schedule, the same tokens."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_tiny

from m2serve.engine.engine import Completion, Engine
from m2serve.engine.request import EngineOutput, EngineRequest, SamplingParams
from m2serve.engine.step import ScheduledSequence, ScheduledStep
from m2serve.engine.step_batch import StepBatcher
from m2serve.errors import CheckpointError, RequestError, ResourceError, UsageError
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache
from m2serve.model.native import NativeMiniMaxM2

VOCAB_SIZE = 1200
BLOCK_BYTES = 16 * 2 * 2 * 2 * 16 * 4  # 16 tokens, k and v, 2 layers, 2 heads of 16, float32
GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
RNG = random.Random(1)
PROMPTS = [[RNG.randrange(VOCAB_SIZE - 100) for _ in range(n)] for n in (1, 7, 16, 33, 50, 64, 90)]


def load(folder: Path, num_blocks: int = 200, **overrides: Any) -> Engine:
    defaults = {"dtype": "float32", "kv_cache_memory_bytes": num_blocks * BLOCK_BYTES}
    return Engine.load(folder, **{**defaults, "max_model_len": 256, **overrides})


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> None:
    yield
    if "engine" in request.fixturenames:
        assert_idle(request.getfixturevalue("engine"))


def assert_idle(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs) == (0, 0)
    assert (stats.num_referenced_blocks, stats.kv_cache_usage) == (0, 0)
    assert stats.num_free_blocks + stats.num_cached_blocks == engine.info.num_kv_blocks
    assert not engine.has_work()
    engine._scheduler.check_integrity()


def ids(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def request(name: str, prompt: list[int], **sampling: Any) -> EngineRequest:
    fields = {"max_tokens": 20, "temperature": 0.0, **sampling}
    return EngineRequest(
        request_id=name, prompt_token_ids=prompt, sampling=SamplingParams(**fields)
    )


def plain_logits(model: MiniMaxM2, token_ids: list[int]) -> torch.Tensor:
    """Logits of every position, one forward pass over the whole text and an empty cache."""
    cache = allocate_kv_cache(model.shape, 20, 16, torch.device("cpu"), torch.float32)
    scheduled = ScheduledSequence(
        request_id="a",
        token_ids=tuple(token_ids),
        start=0,
        block_ids=tuple(range(20)),
        samples=True,
        prompt_targets=tuple(token_ids[1:]),
    )
    with torch.inference_mode():
        batch = StepBatcher(16, torch.device("cpu")).build(ScheduledStep((scheduled,)))
        return model.compute_logits(model.forward(batch, cache)).roll(-1, 0)


def plain_greedy(model: MiniMaxM2, prompt: list[int], count: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(int(plain_logits(model, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


@pytest.fixture(scope="module")
def wanted(engine: Engine) -> list[list[int]]:
    model = engine._runner.model
    return [plain_greedy(model, prompt, GREEDY.max_tokens) for prompt in PROMPTS]


# Greedy output


def test_greedy_is_the_plain_loop(engine: Engine, wanted: list[list[int]]) -> None:
    assert len({tuple(one) for one in wanted}) == len(PROMPTS)
    assert [ids(engine.generate([prompt], GREEDY))[0] for prompt in PROMPTS] == wanted
    completions = engine.generate(PROMPTS, GREEDY)
    assert ids(completions) == wanted
    assert {completion.finish_reason for completion in completions} == {"length"}


@pytest.mark.parametrize(
    "overrides",
    [
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 1},
        {"block_size": 3},
        {"enable_prefix_caching": False},
    ],
    ids=str,
)
def test_greedy_does_not_depend_on_the_schedule(
    folder: Path, wanted: list[list[int]], overrides: dict[str, Any]
) -> None:
    engine = load(folder, **overrides)
    assert ids(engine.generate(PROMPTS, GREEDY)) == wanted
    assert_idle(engine)


def test_prefix_caching_changes_nothing_but_the_work(folder: Path, wanted: list[list[int]]) -> None:
    prompt = PROMPTS[-1]
    cached = load(folder)
    for expected in (0, len(prompt) // 16 * 16):
        [completion] = cached.generate([prompt], GREEDY)
        assert (completion.token_ids, completion.num_cached_tokens) == (wanted[-1], expected)
    plain = load(folder, enable_prefix_caching=False)
    for _ in range(2):
        [completion] = plain.generate([prompt], GREEDY)
        assert (completion.token_ids, completion.num_cached_tokens) == (wanted[-1], 0)


def test_preemption_changes_nothing(folder: Path, wanted: list[list[int]]) -> None:
    engine = load(folder, num_blocks=9, max_model_len=144)
    assert ids(engine.generate(PROMPTS, GREEDY)) == wanted
    assert engine.stats().num_preemptions > 0
    assert_idle(engine)


# Sampling


def test_a_seed_gives_the_same_text_alone_and_in_company(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=30, seed=7, top_p=0.95, top_k=40)
    alone = [ids(engine.generate([prompt], sampling))[0] for prompt in PROMPTS]
    assert ids(engine.generate(PROMPTS, sampling)) == alone
    other = SamplingParams(max_tokens=30, seed=8, top_p=0.95, top_k=40)
    assert ids(engine.generate(PROMPTS, other)) != alone


def test_without_a_seed_texts_differ(engine: Engine) -> None:
    sampling = SamplingParams(max_tokens=30)
    assert len({tuple(one) for one in ids(engine.generate([[1, 2, 3]] * 4, sampling))}) == 4


def test_an_end_of_text_stops(engine: Engine, wanted: list[list[int]]) -> None:
    text = wanted[2]
    at = next(i for i in range(3, 20) if text[i] not in text[:i])
    stop = SamplingParams(max_tokens=20, temperature=0.0, eos_token_ids=(text[at],))
    [completion] = engine.generate([PROMPTS[2]], stop)
    assert completion.token_ids == text[: at + 1]
    assert (completion.finish_reason, completion.stop_token_id) == ("stop", text[at])


def test_forced_ids_come_out_whatever_the_logits_say(engine: Engine) -> None:
    forced = tuple(range(40, 50))
    [completion] = engine.generate(
        [PROMPTS[3]], SamplingParams(max_tokens=99, forced_token_ids=forced, logprobs=0)
    )
    assert (completion.token_ids, completion.finish_reason) == (list(forced), "stop")
    assert [one.token_id for [one] in completion.logprobs] == list(forced)
    [cut] = engine.generate([PROMPTS[3]], SamplingParams(max_tokens=4, forced_token_ids=forced))
    assert (cut.token_ids, cut.finish_reason) == (list(forced[:4]), "length")


@pytest.mark.parametrize("overrides", [{}, {"max_num_batched_tokens": 7}], ids=str)
def test_logprobs_are_those_of_the_plain_model(folder: Path, overrides: dict[str, Any]) -> None:
    engine = load(folder, **overrides)
    sampling = SamplingParams(max_tokens=5, temperature=0.0, logprobs=2, prompt_logprobs=1)
    for prompt, found in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        text = prompt + found.token_ids
        logprobs = plain_logits(engine._runner.model, text).log_softmax(1)
        assert found.prompt_logprobs[0] is None
        rows = found.prompt_logprobs[1:] + found.logprobs
        assert len(rows) == len(text) - 1
        for position, row in enumerate(rows):
            assert row[0].token_id == text[position + 1]
            assert row[1].token_id == int(logprobs[position].argmax())
            for entry in row:
                wanted = logprobs[position, entry.token_id]
                assert entry.logprob == pytest.approx(float(wanted), abs=1e-4)
        assert all(len(row) == 3 for row in found.logprobs)


def test_ids_outside_the_used_vocabulary_are_never_chosen(folder: Path) -> None:
    engine = load(folder, used_vocab_size=10)
    texts = ids(engine.generate(PROMPTS, SamplingParams(max_tokens=20, temperature=5.0)))
    assert max(max(text) for text in texts) < 10
    assert engine.info.used_vocab_size == 10


# Requests that end otherwise


def test_abort_ends_some_and_leaves_the_others(engine: Engine, wanted: list[list[int]]) -> None:
    texts: dict[str, list[int]] = {}
    for index, prompt in enumerate(PROMPTS):
        engine.add(request(str(index), prompt))
    for _ in range(5):
        collect(engine.step(), texts)
    outputs = engine.abort(["0", "3", "unknown", "3"])
    assert [(o.request_id, o.finish_reason) for o in outputs] == [("0", "abort"), ("3", "abort")]
    while engine.has_work():
        collect(engine.step(), texts)
    assert [texts[str(i)] for i in (1, 2, 4, 5, 6)] == [wanted[i] for i in (1, 2, 4, 5, 6)]
    assert wanted[0][: len(texts["0"])] == texts["0"]
    assert len(texts["0"]) < 20


def collect(outputs: list[EngineOutput], texts: dict[str, list[int]]) -> None:
    for output in outputs:
        texts.setdefault(output.request_id, []).extend(output.token_ids)


def test_a_request_that_cannot_be_served_changes_nothing(engine: Engine) -> None:
    before = engine.stats()
    with pytest.raises(RequestError, match=r"prompt is 1200; allowed: token ids from 0 to 1199"):
        engine.add(request("a", [VOCAB_SIZE]))
    with pytest.raises(RequestError, match="context length of 256"):
        engine.generate([[1], [1] * 256], GREEDY)
    assert engine.stats() == before


def test_logits_that_are_not_finite_fail_their_request_alone(
    folder: Path, wanted: list[list[int]]
) -> None:
    poison = VOCAB_SIZE - 1
    engine = load(folder, num_blocks=30)
    engine._runner.model.weights.embedding[poison] = float("nan")
    company = [[poison] * 40, *PROMPTS, [poison], [1] * 20 + [poison]]
    for _ in range(4):
        first, *good, second, third = engine.generate(company, GREEDY)
        assert ids(good) == wanted
        for bad in (first, second, third):
            assert (bad.finish_reason, bad.token_ids) == ("error", [])
            assert "not finite" in bad.error
    assert_idle(engine)


def test_blocks_of_a_failed_request_do_not_fail_their_next_owner(
    folder: Path, wanted: list[list[int]]
) -> None:
    poison = VOCAB_SIZE - 1
    engine = load(folder, num_blocks=40)
    engine._runner.model.weights.embedding[poison] = float("nan")
    bad = engine.generate([[poison] * 250] * 2, GREEDY)
    assert [completion.finish_reason for completion in bad] == ["error", "error"]
    assert engine._runner.kv_cache.values.isnan().any()
    assert ids(engine.generate(PROMPTS, GREEDY)) == wanted


def test_a_failing_forward_pass_is_not_swallowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder)

    def fail(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._runner.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate([[1, 2]], GREEDY)
    assert_idle(engine)


def test_a_random_mix_leaves_nothing(folder: Path, wanted: list[list[int]]) -> None:
    rng = random.Random(3)
    engine = load(folder, num_blocks=24, max_num_batched_tokens=48, max_num_seqs=6)
    running: dict[str, int] = {}
    finished = aborted = 0
    texts: dict[str, list[int]] = {}
    for number in range(200):
        if rng.random() < 0.5:
            index = rng.randrange(len(PROMPTS))
            engine.add(request(str(number), PROMPTS[index], max_tokens=rng.randint(1, 20)))
            running[str(number)] = index
        if running and rng.random() < 0.15:
            name = rng.choice(sorted(running))
            aborted += len(engine.abort([name]))
            del running[name]
        outputs = engine.step()
        collect(outputs, texts)
        for output in outputs:
            if output.finish_reason is not None:
                text = texts[output.request_id]
                assert text == wanted[running.pop(output.request_id)][: len(text)]
                finished += 1
        engine._scheduler.check_integrity()
    assert finished > 30
    assert aborted > 10
    engine.abort(list(running))
    assert_idle(engine)
    assert ids(engine.generate(PROMPTS, GREEDY)) == wanted


# Loading


def test_the_first_tokens_leave_no_trace(folder: Path) -> None:
    engine = load(folder)
    stats = engine.stats()
    assert (stats.step, stats.prompt_tokens, stats.generation_tokens) == (0, 0, 0)
    assert stats.num_free_blocks == engine.info.num_kv_blocks == 200
    assert engine.info.load_time_s > 0


def test_time_without_a_request_is_not_busy(folder: Path) -> None:
    engine = load(folder)
    assert (engine.stats().busy_s, engine.stats().native_s) == (0, 0)
    start = time.perf_counter()
    engine.generate(PROMPTS, GREEDY)
    engine.add(request("a", PROMPTS[0]))
    engine.step()
    engine.abort(["a"])
    time.sleep(0.2)
    engine.generate(PROMPTS, GREEDY)
    stats = engine.stats()
    assert 0 < stats.busy_s < time.perf_counter() - start - 0.2
    is_native = isinstance(engine._runner.model, NativeMiniMaxM2)
    assert (0 < stats.native_s < stats.busy_s) if is_native else stats.native_s == 0
    assert stats.native_busy_share == stats.native_s / stats.busy_s


def test_sizes_come_from_the_checkpoint(folder: Path) -> None:
    seen: list[float] = []
    engine = load(folder, max_model_len=0, num_blocks=300, progress=seen.append)
    info = engine.info
    assert (info.max_model_len, info.vocab_size, info.used_vocab_size) == (4096, 1200, 1200)
    assert (info.device, info.dtype, info.num_kv_blocks) == ("cpu", "float32", 300)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert load(folder, max_model_len=0, num_blocks=30).info.max_model_len == 480


@pytest.mark.parametrize(
    ("overrides", "kind", "match"),
    [
        ({"model_path": "/nowhere"}, CheckpointError, "/nowhere is not a folder"),
        ({"max_model_len": 5000}, UsageError, "--max-model-len is 5000"),
        ({"num_blocks": 15}, ResourceError, "hold 240 tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_one_sentence(
    folder: Path, overrides: dict[str, Any], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        load(folder, **overrides)


def test_a_checkpoint_that_gives_no_number_is_refused(tmp_path: Path) -> None:
    tiny = build_tiny(tmp_path / "a", hidden_size=48, num_hidden_layers=1)
    tiny.state["model.norm.weight"][:] = float("inf")
    build_tiny(tmp_path / "b", format="f32", state=tiny.state, hidden_size=48, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"The model gives no token: .*not finite"):
        load(tmp_path / "b")


def test_the_offline_api_ends_where_the_checkpoint_says(engine: Engine) -> None:
    [eos] = engine._runner.eos_token_ids
    sampling = SamplingParams(max_tokens=8, logit_bias={eos: 100.0})
    [found] = engine.generate([[5, 6, 7]], sampling)
    assert (found.token_ids, found.finish_reason) == ([eos], "stop")
    forever = SamplingParams(max_tokens=8, logit_bias={eos: 100.0}, ignore_eos=True)
    [found] = engine.generate([[5, 6, 7]], forever)
    assert (found.token_ids, found.finish_reason) == ([eos] * 8, "length")
