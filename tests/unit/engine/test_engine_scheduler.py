"""The scheduler, with a model that reads its history back through the block tables.

The model's next token is a hash of every token it finds in the cache, so a wrong block, a wrong
position, a block written by two sequences or a false prefix hit changes the text.
"""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest

from m2serve.engine.block_pool import BlockPool
from m2serve.engine.request import (
    EngineOutput,
    EngineRequest,
    SamplingParams,
    TokenLogprob,
)
from m2serve.engine.scheduler import Scheduler
from m2serve.engine.step import PENDING, ScheduledSequence, ScheduledStep, SequenceResult
from m2serve.errors import RequestError

VOCAB = 50
EOS = 0


def _next_token(history: list[int], salt: bytes = b"") -> int:
    return blake2b(bytes(history) + salt, digest_size=2).digest()[0] % VOCAB


class FakeModel:
    """A KV cache that stores (token, position, salt) where a real one stores keys and values.

    PENDING tokens are those of the step run before.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.block_size = scheduler.pool.block_size
        self.slots: dict[int, tuple[int, int, bytes]] = {}
        self.salts: dict[str, bytes] = {}
        self.chosen: dict[str, int | None] = {}

    def run(self, step: ScheduledStep) -> dict[str, SequenceResult]:
        for request_id, sequence in self.scheduler.sequences.items():
            self.salts[request_id] = sequence.cache_salt
        for scheduled in step.sequences:
            salt = self.salts[scheduled.request_id]
            for offset, token_id in enumerate(scheduled.token_ids):
                if token_id == PENDING:
                    token_id = self.chosen[scheduled.request_id] or 0
                position = scheduled.start + offset
                self.slots[self._slot(scheduled, position)] = (token_id, position, salt)
        results = {scheduled.request_id: self._result(scheduled) for scheduled in step.sequences}
        self.chosen = {request_id: result.token_id for request_id, result in results.items()}
        return results

    def _result(self, scheduled: ScheduledSequence) -> SequenceResult:
        salt = self.salts[scheduled.request_id]
        read = [self.slots[self._slot(scheduled, p)] for p in range(scheduled.end)]
        history = [token_id for token_id, _, _ in read]
        assert [position for _, position, _ in read] == list(range(scheduled.end))
        assert {seen for _, _, seen in read} == {salt}
        token_id = _next_token(history, salt) if scheduled.samples else None
        return SequenceResult(
            token_id=token_id,
            prompt_logprobs=[[TokenLogprob(t, 0.0, 1)] for t in scheduled.prompt_targets],
        )

    def _slot(self, scheduled: ScheduledSequence, position: int) -> int:
        block = scheduled.block_ids[position // self.block_size]
        return block * self.block_size + position % self.block_size


def _scheduler(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_model_len: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 16,
    enable_prefix_caching: bool = True,
) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks, block_size, secret=b"s" * 16),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        seed=0,
    )


def _request(
    request_id: str, prompt: list[int], salt: bytes = b"", **sampling: object
) -> EngineRequest:
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling})
    return EngineRequest(
        request_id=request_id, prompt_token_ids=prompt, sampling=params, cache_salt=salt
    )


def _step(scheduler: Scheduler, model: FakeModel) -> tuple[ScheduledStep, list[EngineOutput]]:
    step = scheduler.schedule()
    scheduler.check_integrity()
    outputs = scheduler.update(step, model.run(step))
    scheduler.check_integrity()
    return step, outputs


def _finish_all(scheduler: Scheduler, model: FakeModel) -> dict[str, list[EngineOutput]]:
    outputs: dict[str, list[EngineOutput]] = {}
    while scheduler.has_unfinished():
        for output in _step(scheduler, model)[1]:
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def _text(outputs: list[EngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def _unbatched(request: EngineRequest, max_seq_len: int) -> tuple[list[int], str]:
    """What the request gives alone: the definition, written without the scheduler's code."""
    sampling = request.sampling
    generated: list[int] = []
    while True:
        history = request.prompt_token_ids + generated
        generated.append(_next_token(history, request.cache_salt))
        ends = generated[-1] in sampling.stop_token_ids or (
            generated[-1] in sampling.eos_token_ids and not sampling.ignore_eos
        )
        if ends and len(generated) >= sampling.min_tokens:
            return generated, "stop"
        if len(generated) == sampling.max_tokens or len(history) + 1 == max_seq_len:
            return generated, "length"


def test_a_prompt_is_computed_in_chunks_and_sampled_once_complete() -> None:
    scheduler = _scheduler(max_num_batched_tokens=4)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", list(range(10)), max_tokens=2))
    steps = [_step(scheduler, model) for _ in range(4)]
    scheduled = [step.sequences[0] for step, _ in steps]
    assert [(s.start, s.num_tokens, s.samples) for s in scheduled] == [
        (0, 4, False),
        (4, 4, False),
        (8, 2, True),
        (10, 1, True),
    ]
    assert [len(s.block_ids) for s in scheduled] == [1, 2, 3, 3]
    assert [len(outputs) for _, outputs in steps] == [0, 0, 1, 1]
    assert steps[3][1][0].finish_reason == "length"
    assert not scheduler.has_unfinished()


def test_decodes_run_before_prefills_and_share_the_budget() -> None:
    scheduler = _scheduler(max_num_batched_tokens=8)
    model = FakeModel(scheduler)
    scheduler.add(_request("old", [1, 2, 3]))
    _step(scheduler, model)
    scheduler.add(_request("long", [4] * 20))
    scheduler.add(_request("late", [5, 6]))
    shapes = []
    for _ in range(3):
        step, _ = _step(scheduler, model)
        shapes.append([(s.request_id, s.num_tokens) for s in step.sequences])
    assert shapes == [
        [("old", 1), ("long", 7)],
        [("old", 1), ("long", 7)],
        [("old", 1), ("long", 6), ("late", 1)],
    ]


def test_a_prefix_is_found_again_but_never_the_whole_prompt() -> None:
    scheduler = _scheduler()
    model = FakeModel(scheduler)
    prompt = list(range(8))
    cached = []
    for name, ids in [("a", prompt), ("b", prompt), ("c", [*prompt, 9]), ("d", [9, *prompt])]:
        request = _request(name, ids, max_tokens=2)
        scheduler.add(request)
        outputs = _finish_all(scheduler, model)[name]
        assert _text(outputs) == _unbatched(request, 64)[0]
        cached.append(outputs[0].num_cached_tokens)
    assert cached == [0, 4, 8, 0]
    stats = scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (34, 12)


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    scheduler = _scheduler()
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1, 2, 3], max_tokens=6))
    answer = _text(_finish_all(scheduler, model)["a"])
    scheduler.add(_request("b", [1, 2, 3, *answer, 4], max_tokens=1))
    assert _finish_all(scheduler, model)["b"][0].num_cached_tokens == 8


def test_no_prefix_is_shared_across_salts_or_when_switched_off() -> None:
    for salt, enabled, expected in [(b"", True, 4), (b"t", True, 0), (b"", False, 0)]:
        scheduler = _scheduler(enable_prefix_caching=enabled)
        model = FakeModel(scheduler)
        scheduler.add(_request("a", [1, 2, 3, 4, 5], max_tokens=5))
        _finish_all(scheduler, model)
        scheduler.add(_request("b", [1, 2, 3, 4, 5], salt=salt, max_tokens=1))
        assert _finish_all(scheduler, model)["b"][0].num_cached_tokens == expected


def test_prompt_logprobs_skip_the_cache_and_come_once_for_the_whole_prompt() -> None:
    scheduler = _scheduler(max_num_batched_tokens=3)
    model = FakeModel(scheduler)
    prompt = [1, 2, 3, 4, 5, 6, 7]
    scheduler.add(_request("a", prompt, max_tokens=2))
    _finish_all(scheduler, model)
    scheduler.add(_request("b", prompt, prompt_logprobs=0, max_tokens=2))
    first, second = _finish_all(scheduler, model)["b"]
    assert first.num_cached_tokens == 0
    assert second.prompt_logprobs is None
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert [entry[0].token_id for entry in first.prompt_logprobs[1:] if entry] == prompt[1:]


def test_prompt_logprobs_survive_a_preemption() -> None:
    scheduler = _scheduler(num_blocks=5, max_num_batched_tokens=3)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1, 2, 3], max_tokens=14))
    _step(scheduler, model)
    prompt = list(range(10, 22))
    scheduler.add(_request("b", prompt, prompt_logprobs=0, max_tokens=2))
    news = []
    while scheduler.stats().num_preemptions == 0:
        news += _step(scheduler, model)[1]
    assert {output.request_id for output in news} == {"a"}
    outputs = _finish_all(scheduler, model)["b"]
    logprobs = [entry[0].token_id for entry in (outputs[0].prompt_logprobs or [])[1:] if entry]
    assert logprobs == prompt[1:]
    assert _text(outputs) == _unbatched(_request("b", prompt, max_tokens=2), 20)[0]


def test_the_newest_is_preempted_and_continues_where_it_was() -> None:
    scheduler = _scheduler(num_blocks=6, max_model_len=24, enable_prefix_caching=False)
    model = FakeModel(scheduler)
    requests = [_request(name, [i] * 6, max_tokens=12) for i, name in enumerate("abc")]
    for request in requests:
        scheduler.add(request)
    outputs = _finish_all(scheduler, model)
    assert scheduler.stats().num_preemptions > 0
    for request in requests:
        assert _text(outputs[request.request_id]) == _unbatched(request, 24)[0]


def test_a_sequence_alone_in_the_cache_ends_with_length() -> None:
    scheduler = _scheduler(num_blocks=3, max_model_len=1000)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1, 2, 3], max_tokens=500))
    outputs = _finish_all(scheduler, model)["a"]
    assert outputs[-1].finish_reason == "length"
    assert len(_text(outputs)) == 12 - 3
    assert scheduler.stats().num_preemptions == 0


def test_what_can_never_run_is_refused() -> None:
    scheduler = _scheduler(num_blocks=3)
    with pytest.raises(RequestError, match="12 tokens") as caught:
        scheduler.add(_request("a", [1] * 12))
    assert caught.value.code == "context_length_exceeded"
    scheduler.add(_request("a", [1] * 11))
    with pytest.raises(RequestError, match="'a' is already being served"):
        scheduler.add(_request("a", [1]))


def test_abort_waiting_running_in_flight_and_unknown() -> None:
    scheduler = _scheduler(max_num_seqs=1)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1, 2, 3]))
    scheduler.add(_request("b", [1, 2, 3]))
    step = scheduler.schedule()
    results = model.run(step)
    aborted = scheduler.abort("a")
    assert aborted is not None
    assert (aborted.request_id, aborted.finish_reason) == ("a", "abort")
    assert scheduler.update(step, results) == []
    assert scheduler.abort("a") is None
    assert scheduler.abort("never seen") is None
    assert scheduler.abort("b") is not None
    assert not scheduler.has_unfinished()
    scheduler.check_integrity()
    assert scheduler.stats().num_referenced_blocks == 0
    assert scheduler.schedule().sequences == ()


def test_a_failed_request_ends_with_its_error_and_leaves_no_prefix_behind() -> None:
    scheduler = _scheduler()
    model = FakeModel(scheduler)
    scheduler.add(_request("good", [1, 2, 3, 4, 5]))
    scheduler.add(_request("bad", [6, 7, 8, 9, 10]))
    _step(scheduler, model)
    step = scheduler.schedule()
    results = model.run(step) | {"bad": SequenceResult(error="not a number")}
    good, bad = scheduler.update(step, results)
    assert (good.request_id, good.finish_reason) == ("good", None)
    assert (bad.finish_reason, bad.error, bad.token_ids) == ("error", "not a number", [])
    scheduler.check_integrity()
    scheduler.add(_request("next", [6, 7, 8, 9, 10]))
    assert _finish_all(scheduler, model)["next"][0].num_cached_tokens == 0


def test_a_stop_id_ends_the_text_and_is_reported() -> None:
    scheduler = _scheduler()
    model = FakeModel(scheduler)
    stop = _next_token([1, 2, 3])
    scheduler.add(_request("a", [1, 2, 3], stop_token_ids=(stop,)))
    (output,) = _finish_all(scheduler, model)["a"]
    assert (output.finish_reason, output.stop_token_id) == ("stop", stop)
    assert output.token_ids == [stop]


def test_blocks_are_handed_out_as_the_same_tuple_until_there_is_a_new_one() -> None:
    scheduler = _scheduler(block_size=4)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1, 2, 3], max_tokens=8, ignore_eos=True))
    held = [_step(scheduler, model)[0].sequences[0].block_ids for _ in range(6)]
    assert [len(block_ids) for block_ids in held] == [1, 1, 2, 2, 2, 2]
    assert held[0] is held[1]
    assert held[2] is held[3] is held[4] is held[5]


def test_stats_count_tokens_requests_and_steps() -> None:
    scheduler = _scheduler(max_num_seqs=1, num_blocks=8)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1, 2, 3], max_tokens=3))
    scheduler.add(_request("b", [1, 2], max_tokens=1))
    _step(scheduler, model)
    stats = scheduler.stats()
    assert (stats.step, stats.num_running_reqs, stats.num_waiting_reqs) == (1, 1, 1)
    assert (stats.prompt_tokens, stats.generation_tokens) == (3, 1)
    assert (stats.num_referenced_blocks, stats.kv_cache_usage) == (1, 1 / 8)
    _finish_all(scheduler, model)
    stats = scheduler.stats()
    assert (stats.step, stats.num_running_reqs, stats.num_waiting_reqs) == (4, 0, 0)
    assert (stats.prompt_tokens, stats.generation_tokens) == (5, 4)
    assert stats.num_free_blocks + stats.num_cached_blocks == 8


def test_seeds_are_drawn_in_order_of_arrival() -> None:
    seeds = [[_scheduler_seed(s, i) for i in range(3)] for s in (_scheduler(), _scheduler())]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


def _scheduler_seed(scheduler: Scheduler, index: int) -> int:
    return scheduler.add(_request(str(index), [1])).seed


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda s: setattr(s.running[0], "block_ids", ()), "references"),
        (lambda s: s.running.reverse(), "order of arrival"),
        (lambda s: s.sequences.pop("b"), "differ"),
        (lambda s: s.running[0].token_ids.extend([1] * 64), "longer"),
        (lambda s: setattr(s.running[0], "num_computed_tokens", 0), "computed tokens"),
        (lambda s: s.waiting.append(s.running.pop()), "waiting sequence holds"),
        (lambda s: setattr(s, "max_num_seqs", 1), "too many"),
    ],
)
def test_check_integrity_finds_damage(damage, problem: str) -> None:
    scheduler = _scheduler()
    for name in "ab":
        scheduler.add(_request(name, [1, 2, 3]))
    _step(scheduler, FakeModel(scheduler))
    # A sequence in no queue still holds its blocks; keep the pool's own check quiet about it.
    damage(scheduler)
    if problem != "references":
        scheduler.pool.check_integrity = lambda held: None  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=problem):
        scheduler.check_integrity()


def test_a_step_ahead_gives_nothing_to_a_new_request_of_an_old_name() -> None:
    scheduler = _scheduler()
    model = FakeModel(scheduler)
    for name in ("a", "b"):
        scheduler.add(_request(name, [1, 2, 3]))
    _step(scheduler, model)
    step = scheduler.schedule()
    ahead = scheduler.schedule_ahead(step, lambda sequence: True)
    assert ahead is not None
    assert [one.token_ids for one in ahead.sequences] == [(PENDING,)] * 2
    scheduler.update(step, model.run(step))
    scheduler.abort("a")
    scheduler.add(_request("a", [4, 5, 6]))
    assert scheduler.is_awaited(ahead)
    results = model.run(ahead)
    assert [output.request_id for output in scheduler.update(ahead, results)] == ["b"]
    assert scheduler.sequences["a"].num_tokens == 3
    scheduler.abort("b")
    assert not scheduler.is_awaited(ahead)


def test_nothing_runs_ahead_while_a_request_can_be_admitted_or_may_not() -> None:
    scheduler = _scheduler(num_blocks=5, max_num_seqs=4)
    model = FakeModel(scheduler)
    scheduler.add(_request("a", [1] * 6))
    _step(scheduler, model)
    step = scheduler.schedule()
    assert scheduler.schedule_ahead(step, lambda sequence: False) is None
    scheduler.add(_request("small", [2] * 4))
    assert scheduler.schedule_ahead(step, lambda sequence: True) is None
    scheduler.abort("small")
    scheduler.add(_request("large", [2] * 14))  # has no room beside the first
    assert scheduler.schedule_ahead(step, lambda sequence: True) is not None


def test_a_request_does_not_run_ahead_of_its_last_token() -> None:
    scheduler = _scheduler(enable_prefix_caching=False)
    model = FakeModel(scheduler)
    scheduler.add(_request("short", [1, 2], max_tokens=2))
    scheduler.add(_request("long", [3, 4], max_tokens=3))
    _step(scheduler, model)
    step = scheduler.schedule()
    ahead = scheduler.schedule_ahead(step, lambda sequence: True)
    assert ahead is not None
    assert [one.request_id for one in ahead.sequences] == ["long"]
    scheduler.update(step, model.run(step))
    assert scheduler.schedule_ahead(ahead, lambda sequence: True) is None


class _Fuzz:
    """Random requests with shared prefixes, random aborts and failures, a tiny pool."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        block_size = rng.choice([1, 2, 3, 4, 8])
        max_model_len = rng.choice([8, 20, 40, 60])
        self.scheduler = _scheduler(
            num_blocks=max(2, int(max_model_len * rng.choice([0.6, 1, 1.5, 3])) // block_size),
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=rng.choice([1, 3, 8, 16]),
            max_num_batched_tokens=rng.choice([1, 3, 8, 16, 64]),
            enable_prefix_caching=rng.random() < 0.8,
        )
        self.model = FakeModel(self.scheduler)
        self.requests: dict[str, EngineRequest] = {}
        self.outputs: dict[str, list[EngineOutput]] = {}
        self.arrived: list[str] = []
        self.long_answers = rng.random() < 0.5
        self.runs_ahead = rng.random() < 0.7
        self.ahead: ScheduledStep | None = None
        self.num_ahead = 0
        self.prefixes = [[rng.randrange(VOCAB) for _ in range(30)] for _ in range(3)]

    def add(self) -> None:
        rng = self.rng
        limit = self.scheduler.max_seq_len - 1
        prefix = rng.choice(self.prefixes)[: rng.randrange(0, 20)]
        prompt = (prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12))])[:limit]
        if self.long_answers:
            prompt = prompt[-5:]
        max_tokens = rng.randrange(1, 60 if self.long_answers else 15)
        request = _request(
            str(len(self.requests)),
            prompt,
            salt=rng.choice([b"", b"", b"tenant"]),
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, min(3, max_tokens)]),
            eos_token_ids=(EOS,),
            ignore_eos=self.long_answers or rng.random() < 0.3,
            stop_token_ids=() if self.long_answers else rng.choice([(), (1, 2, 3)]),
            prompt_logprobs=rng.choice([None, None, None, 0]),
        )
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = []
        self.scheduler.add(request)

    def abort_one(self) -> None:
        if self.scheduler.sequences and self.rng.random() < 0.05:
            request_id = self.rng.choice(list(self.scheduler.sequences))
            output = self.scheduler.abort(request_id)
            assert output is not None
            self.outputs[request_id].append(output)

    def step(self) -> None:
        self.abort_one()
        step, results = self.computed()
        if self.runs_ahead and self.rng.random() < 0.9:
            self.ahead = self.scheduler.schedule_ahead(step, lambda sequence: True)
        if self.ahead is not None:
            assert {s.request_id for s in self.ahead.sequences} <= {
                s.request_id for s in step.sequences
            }
            assert all(s.token_ids == (PENDING,) and s.samples for s in self.ahead.sequences)
            self.scheduler.check_integrity()
            self.check_written_blocks(self.ahead)
            self.num_ahead += 1
        if step.sequences and self.rng.random() < 0.02:
            results[self.rng.choice(step.sequences).request_id] = SequenceResult(error="injected")
        self.abort_one()
        for output in self.scheduler.update(step, results):
            self.outputs[output.request_id].append(output)
        self.scheduler.check_integrity()

    def computed(self) -> tuple[ScheduledStep, dict[str, SequenceResult]]:
        """The step that was scheduled ahead, if anybody waits for it, or one scheduled now."""
        step, self.ahead = self.ahead, None
        if step is not None:
            results = self.model.run(step)
            if self.scheduler.is_awaited(step):
                return step, results
        oldest = next(iter(self.scheduler.sequences), None)
        step = self.scheduler.schedule()
        self.check_step(step, oldest)
        return step, self.model.run(step)

    def check_step(self, step: ScheduledStep, oldest: str | None) -> None:
        scheduler = self.scheduler
        scheduler.check_integrity()
        assert step.num_tokens <= scheduler.max_num_batched_tokens
        assert len(step.sequences) <= scheduler.max_num_seqs
        assert all(scheduled.num_tokens > 0 for scheduled in step.sequences)
        # The oldest request is in every step: with an end to each request, nothing starves.
        assert [s.request_id for s in step.sequences[:1]] == ([] if oldest is None else [oldest])
        in_prefill = [
            s
            for s in scheduler.running
            if s.num_computed_tokens < s.num_tokens
            and any(s.request_id == scheduled.request_id for scheduled in step.sequences)
        ]
        assert in_prefill in ([], scheduler.running[-1:])
        self.check_written_blocks(step)

    def check_written_blocks(self, step: ScheduledStep) -> None:
        block_size = self.scheduler.pool.block_size
        for scheduled in step.sequences:
            first = scheduled.start // block_size
            written = set(scheduled.block_ids[first:])
            for other in self.scheduler.running:
                if other.request_id != scheduled.request_id:
                    assert not written & set(other.block_ids)

    def check_texts(self) -> None:
        for request_id, request in self.requests.items():
            outputs = self.outputs[request_id]
            text, reason = _unbatched(request, self.scheduler.max_seq_len)
            got = _text(outputs)
            assert [output.finish_reason is None for output in outputs[:-1]] == [True] * (
                len(outputs) - 1
            )
            if outputs[-1].finish_reason in ("abort", "error"):
                assert got == text[: len(got)]
            else:
                assert (got, outputs[-1].finish_reason) == (text, reason)
            if got and request.sampling.prompt_logprobs is not None:
                assert outputs[0].prompt_logprobs is not None
                assert len(outputs[0].prompt_logprobs) == len(request.prompt_token_ids)


def _run_fuzz(seed: int) -> _Fuzz:
    fuzz = _Fuzz(seed)
    num_requests = fuzz.rng.randrange(10, 40)
    while len(fuzz.requests) < num_requests or fuzz.scheduler.has_unfinished():
        if len(fuzz.requests) < num_requests and fuzz.rng.random() < 0.4:
            fuzz.add()
        fuzz.step()
    assert fuzz.scheduler.schedule().sequences == ()
    fuzz.check_texts()
    return fuzz


@pytest.mark.parametrize("seed", range(100))
def test_fuzz(seed: int) -> None:
    stats = _run_fuzz(seed).scheduler.stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs, stats.num_referenced_blocks) == (0,) * 3


def test_fuzz_reaches_the_hard_cases() -> None:
    """These seeds preempt, hit the prefix cache, run ahead, and for thousands of steps."""
    runs = [_run_fuzz(seed) for seed in range(60)]
    stats = [run.scheduler.stats() for run in runs]
    assert sum(run.num_ahead for run in runs) > 500
    assert sum(one.num_preemptions for one in stats) > 50
    assert sum(one.prefix_cache_hits for one in stats) > 250
    assert sum(one.step for one in stats) > 3000
