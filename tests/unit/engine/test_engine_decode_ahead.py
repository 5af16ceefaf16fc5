"""Decode steps that run while Python goes on: the same tokens, and only where nothing is lost."""

from __future__ import annotations

import ctypes
import gc
import json
import random
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from m2serve.engine.decode_ahead import DecodeAhead
from m2serve.engine.engine import Completion, Engine
from m2serve.engine.request import EngineOutput, EngineRequest, SamplingParams
from m2serve.engine.step import PENDING, ScheduledStep
from m2serve.kernels.cpu_decoder import CpuDecoder
from m2serve.kernels.cpu_library import load_cpu_library

pytestmark = pytest.mark.skipif(load_cpu_library() is None, reason="no native kernels here")

VOCAB_SIZE = 1200
RNG = random.Random(2)
PROMPTS = [[RNG.randrange(VOCAB_SIZE) for _ in range(n)] for n in (2, 5, 16, 17, 31, 40)]
GREEDY = SamplingParams(max_tokens=40, temperature=0.0)
SAMPLED = SamplingParams(max_tokens=40, temperature=1.0, top_k=40, top_p=0.95, seed=7)


def load(folder: Path, **overrides: Any) -> Engine:
    sizes = {"max_model_len": 256, "kv_cache_memory_bytes": 8 * 2**20}
    return Engine.load(folder, dtype="float32", **{**sizes, **overrides})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ScheduledStep]:
    """The steps handed to the library, in order."""
    steps: list[ScheduledStep] = []
    start = DecodeAhead.start

    def spy(self: DecodeAhead, step: ScheduledStep, *arguments: Any) -> Any:
        steps.append(step)
        return start(self, step, *arguments)

    monkeypatch.setattr(DecodeAhead, "start", spy)
    return steps


def pending(steps: list[ScheduledStep]) -> int:
    return sum(one.token_ids == (PENDING,) for step in steps for one in step.sequences)


def without(engine: Engine, sampling: SamplingParams) -> list[Completion]:
    """Step by step, each waited for before the next is scheduled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeAhead, "can_run", lambda *arguments: False)
        return engine.generate(PROMPTS, sampling)


def request(name: str, prompt: list[int], **sampling: Any) -> EngineRequest:
    params = SamplingParams(**{"max_tokens": 40, "temperature": 0.0, **sampling})
    return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=params)


def drain(engine: Engine) -> dict[str, list[EngineOutput]]:
    outputs: dict[str, list[EngineOutput]] = {}
    while engine.has_work():
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def text(outputs: list[EngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("overrides", [{}, {"max_num_seqs": 2}, {"block_size": 3}], ids=str)
def test_running_ahead_changes_no_token(
    folder: Path, started: list[ScheduledStep], sampling: SamplingParams, overrides: dict[str, Any]
) -> None:
    engine = load(folder, **overrides)
    wanted = without(engine, sampling)
    started.clear()
    found = engine.generate(PROMPTS, sampling)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    assert [one.finish_reason for one in found] == ["length"] * len(PROMPTS)
    assert pending(started) > 0.8 * len(PROMPTS) * sampling.max_tokens
    engine._scheduler.check_integrity()


def test_a_token_that_ends_a_request_ends_it_there(
    folder: Path, started: list[ScheduledStep]
) -> None:
    engine = load(folder)
    wanted = without(engine, SAMPLED)
    ends = {one.token_ids[n] for one, n in zip(wanted, (3, 9, 20, 1, 30, 39), strict=True)}
    sampling = SamplingParams(
        max_tokens=40, temperature=1.0, top_k=40, top_p=0.95, seed=7, stop_token_ids=tuple(ends)
    )
    for _ in range(2):  # the second finds what the first left under way
        for one, full in zip(engine.generate(PROMPTS, sampling), wanted, strict=True):
            until = next(n for n, id in enumerate(full.token_ids, 1) if id in ends)
            assert one.token_ids == full.token_ids[:until]
            assert one.finish_reason == "stop"
    assert pending(started)
    engine._scheduler.check_integrity()


@pytest.mark.parametrize(
    "sampling",
    [
        {"logprobs": 0},
        {"repetition_penalty": 1.1},
        {"min_tokens": 40},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.9},
        {"forced_token_ids": tuple(range(40))},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_what_needs_its_logits_is_waited_for_and_so_is_its_company(
    folder: Path, started: list[ScheduledStep], sampling: dict[str, Any]
) -> None:
    engine = load(folder)
    started.clear()
    engine.add(request("plain", PROMPTS[1]))
    engine.add(request("other", PROMPTS[2], **sampling))
    outputs = drain(engine)
    assert {name: len(text(found)) for name, found in outputs.items()} == {"plain": 40, "other": 40}
    assert not pending(started)


def test_a_newcomer_is_not_kept_waiting(folder: Path, started: list[ScheduledStep]) -> None:
    engine = load(folder)
    wanted = without(engine, GREEDY)
    engine.add(request("a", PROMPTS[4]))
    first = [output for _ in range(5) for output in engine.step()]
    engine.add(request("b", PROMPTS[5]))
    news = [*engine.step(), *engine.step()]  # the step under way, then one with the newcomer
    assert {output.request_id for output in news} == {"a", "b"}
    rest = drain(engine)
    assert text([*first, *(o for o in news if o.request_id == "a"), *rest["a"]]) == (
        wanted[4].token_ids
    )
    assert text([*(o for o in news if o.request_id == "b"), *rest["b"]]) == wanted[5].token_ids


def test_a_name_may_be_used_again_while_its_old_step_is_under_way(
    folder: Path, started: list[ScheduledStep]
) -> None:
    engine = load(folder)
    wanted = without(engine, GREEDY)
    started.clear()
    engine.add(request("a", PROMPTS[4]))
    for _ in range(6):
        engine.step()
    engine.abort(["a"])
    assert started[-1].sequences[0].token_ids == (PENDING,)
    engine.add(request("a", PROMPTS[5]))
    assert text(drain(engine)["a"]) == wanted[5].token_ids


def test_a_failed_row_fails_alone(folder: Path, started: list[ScheduledStep]) -> None:
    engine = load(folder)
    wanted = without(engine, GREEDY)
    poison = wanted[4].token_ids[20]
    assert poison not in wanted[5].token_ids
    engine._runner.model.weights.embedding[poison] = float("nan")
    good, bad = engine.generate([PROMPTS[5], PROMPTS[4]], GREEDY)
    assert good.token_ids == wanted[5].token_ids
    assert (bad.finish_reason, bad.token_ids) == ("error", wanted[4].token_ids[:21])
    assert bad.error is not None
    assert "not finite" in bad.error
    assert pending(started)


def test_weights_and_cache_stay_while_a_step_may_be_under_way(folder: Path) -> None:
    engine = load(folder)
    engine.add(request("a", PROMPTS[4]))
    for _ in range(3):
        engine.step()
    ahead = engine._runner.ahead
    assert ahead is not None
    decoder = ahead._decoder
    watched = [weakref.ref(engine._runner.model.weights), weakref.ref(engine._runner.kv_cache)]
    del engine, ahead
    gc.collect()
    assert all(one() is not None for one in watched)
    del decoder
    gc.collect()
    assert not any(one() is not None for one in watched)


@pytest.mark.parametrize("prompts", [PROMPTS, [[5]]], ids=["prompts", "a token"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("problem", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_exception_leaves_nothing_under_way(
    folder: Path, prompts: list[list[int]], when: str, problem: type[BaseException]
) -> None:
    engine = load(folder)
    wanted = [one.token_ids for one in without(engine, GREEDY)]
    [alone] = engine.generate([[5]], GREEDY)
    wait = CpuDecoder.wait
    calls = 0

    def fail(self: CpuDecoder) -> list[int]:
        nonlocal calls
        calls += 1
        if calls < 5:
            return wait(self)
        if when == "after":
            self._functions.m2_decode_wait(self._handle, ctypes.byref(self._seconds))
        raise problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuDecoder, "wait", fail)
        with pytest.raises(problem):
            engine.generate(prompts, GREEDY)
    for _ in range(2):
        if prompts != PROMPTS:  # of one token: no prompt is computed first
            assert engine.generate(prompts, GREEDY)[0].token_ids == alone.token_ids
        assert [one.token_ids for one in engine.generate(PROMPTS, GREEDY)] == wanted


def test_a_model_that_would_end_at_once_can_be_loaded(folder: Path, tmp_path: Path) -> None:
    prompts = [[0], [0, 0]]
    firsts = [one.token_ids[0] for one in load(folder).generate(prompts, GREEDY)]
    ending = tmp_path / "ending"
    shutil.copytree(folder, ending)
    settings = json.dumps({"eos_token_id": firsts})
    (ending / "generation_config.json").write_text(settings, encoding="utf-8")
    engine = load(ending)
    for _ in range(2):
        for prompt, first in zip(prompts, firsts, strict=True):
            [completion] = engine.generate([prompt], GREEDY)
            assert (completion.token_ids, completion.finish_reason) == ([first], "stop")


def test_more_threads_wait_for_the_step_under_way(folder: Path) -> None:
    engine = load(folder)
    wanted = [one.token_ids for one in without(engine, GREEDY)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 2, 5, 1):
            found = engine.generate(PROMPTS, GREEDY)
            assert [one.token_ids for one in found] == wanted
            for name, prompt in (("a", PROMPTS[4]), ("b", PROMPTS[5])):
                engine.add(request(name, prompt))
            for _ in range(4):
                engine.step()
            torch.set_num_threads(count)
            library = load_cpu_library()
            assert library is not None
            library.follow_torch_threads()  # as another engine's next call would
            outputs = drain(engine)
            assert {name: len(text(found)) for name, found in outputs.items()} == {
                "a": 36,
                "b": 36,
            }
    finally:
        torch.set_num_threads(threads)


def test_without_a_thread_every_step_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, started: list[ScheduledStep]
) -> None:
    library = load_cpu_library()
    assert library is not None

    def none(*arguments: object) -> None:
        return None

    monkeypatch.setattr(library.functions, "m2_decoder_new", none)
    [completion] = load(folder).generate([PROMPTS[1]], GREEDY)
    assert len(completion.token_ids) == GREEDY.max_tokens
    assert not started
