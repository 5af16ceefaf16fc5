"""An engine that says what a test tells it to, step by step, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from tiny_tokenizer import build_tokenizer

from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.client import EngineHealth
from m2serve.engine.request import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    TokenLogprob,
)
from m2serve.errors import EngineDeadError

VOCAB_SIZE = 1024
MAX_MODEL_LEN = 4096


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(json.loads(build_tokenizer(VOCAB_SIZE).to_str()))


@dataclass(frozen=True)
class Say:
    """One step of an answer. `wait` happens before it; `error` is raised instead of it."""

    token_ids: Sequence[int] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    wait: Callable[[], object] | None = None
    error: Exception | None = None
    message: str | None = None


Script = Callable[[EngineRequest], Iterable[Say]]


def says(text: str, *, chunk: int = 1, finish_reason: FinishReason = "stop") -> Script:
    """`text` in steps of `chunk` ids; with "stop" the end-of-turn id follows, as from a model."""

    def script(request: EngineRequest) -> Iterator[Say]:
        ids = tiny_tokenizer().encode(text, allow_control=True)
        if finish_reason == "stop":
            ids.append(tiny_tokenizer().control.turn_end)
        else:
            ids = ids[: request.sampling.max_tokens]
        for start in range(0, len(ids), chunk):
            last = start + chunk >= len(ids)
            stops = last and finish_reason == "stop"
            yield Say(
                ids[start : start + chunk],
                finish_reason if last else None,
                ids[-1] if stops else None,
            )

    return script


def goes_on(text: str = "and so on ") -> Script:
    """As long as max_tokens lets it; gives the loop a turn before each id."""

    def script(request: EngineRequest) -> Iterator[Say]:
        ids = itertools.cycle(tiny_tokenizer().encode(text))
        for left in range(request.sampling.max_tokens, 0, -1):
            reason: FinishReason | None = "length" if left == 1 else None
            yield Say([next(ids)], reason, wait=lambda: asyncio.sleep(0.002))

    return script


@dataclass
class FakeEngine:
    """`script` answers every request. `aborted` are ids whose iterator was closed early."""

    script: Script = field(default_factory=lambda: says("Hi</think>Hello"))
    state: EngineHealth = field(default_factory=lambda: EngineHealth("ready", True, True))
    counters: EngineStats = field(default_factory=EngineStats)
    num_cached_tokens: int = 0
    requests: list[EngineRequest] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="tiny",
            device="cpu",
            dtype="float32",
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
            used_vocab_size=tiny_tokenizer().used_vocab_size,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            num_kv_blocks=4096,
            kv_block_size=16,
            enable_prefix_caching=True,
            load_time_s=0.0,
        )

    async def start(self) -> None: ...

    async def wait_ready(self) -> EngineInfo:
        return self.info

    def health(self) -> EngineHealth:
        return self.state

    def stats(self) -> EngineStats:
        return self.counters

    async def close(self) -> None:
        self.closed = True

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if not self.state.ready:
            raise EngineDeadError("secret detail of the fake engine")
        self.requests.append(request)
        self.active.add(request.request_id)
        finished = False
        first = True
        try:
            for step in self.script(request):
                if step.wait is not None:
                    await step.wait()  # type: ignore[misc]
                if step.error is not None:
                    finished = True
                    raise step.error
                finished = step.finish_reason is not None
                yield EngineOutput(
                    request_id=request.request_id,
                    token_ids=list(step.token_ids),
                    logprobs=_logprobs(request.sampling.logprobs, step.token_ids),
                    prompt_logprobs=_prompt_logprobs(request) if first else None,
                    finish_reason=step.finish_reason,
                    stop_token_id=step.stop_token_id,
                    num_cached_tokens=self.num_cached_tokens,
                    error=step.message,
                )
                first = False
        finally:
            self.active.discard(request.request_id)
            if not finished:
                self.aborted.append(request.request_id)


def _logprobs(count: int | None, ids: Sequence[int]) -> list[list[TokenLogprob]] | None:
    """The chosen id has -0.5; alternative k is id k with -(k + 1)."""
    if count is None:
        return None
    return [
        [TokenLogprob(id, -0.5, 1), *(TokenLogprob(k, -(k + 1.0), k + 2) for k in range(count))]
        for id in ids
    ]


def _prompt_logprobs(request: EngineRequest) -> list[list[TokenLogprob] | None] | None:
    count = request.sampling.prompt_logprobs
    if count is None:
        return None
    return [None, *(_logprobs(count, request.prompt_token_ids[1:]) or [])]
