"""A running vLLM, SGLang, vLLM-Ascend or m2serve as the engine: ids in, ids out, over HTTP.

No torch. Several URLs of the same model share the requests by `upstream_balance`; a request that
fails before its first output is tried on another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import msgspec

from m2serve.engine.client import EngineHealth, EngineState
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats
from m2serve.engine.upstream_balance import Balancer, block_hashes
from m2serve.engine.upstream_dialect import Dialect, UpstreamBusyError, UpstreamError
from m2serve.engine.upstream_http import UpstreamHttp
from m2serve.engine.upstream_member import Member, UpstreamTimes
from m2serve.engine.upstream_sglang import SglangDialect
from m2serve.engine.upstream_vllm import VllmDialect
from m2serve.engine.validation import check_request
from m2serve.errors import EngineDeadError, M2Error, OverloadedError, UsageError


@dataclass(frozen=True)
class UpstreamModel:
    """What the checkpoint's folder says of the model that the upstreams serve.

    `max_model_len` counts where an upstream does not name its own.
    """

    path: str
    vocab_size: int
    used_vocab_size: int
    max_model_len: int


class UpstreamEngine:
    """EngineClient for engines that others have started; `decode` turns ids into text.

    Ready while at least one of them is. A wrong key, or an API without token ids, fails the first
    start; engines that do not answer yet are waited for, however long they load.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: UpstreamModel,
        decode: Callable[[Sequence[int]], str],
        *,
        api_key: str | None = None,
        times: UpstreamTimes | None = None,
    ) -> None:
        """Raises UsageError for what is no URL, and for one given twice."""
        dialects: dict[str, Dialect] = {"": VllmDialect(decode), "sglang": SglangDialect()}
        https = [UpstreamHttp(url, api_key) for url in urls]
        if len({http.url for http in https}) < len(https):
            raise UsageError("an upstream is given twice; each needs to be another engine")
        self._model = model
        self._members = [
            Member(http, dialects, times or UpstreamTimes(), self._on_change) for http in https
        ]
        self._balancer = Balancer(len(self._members))
        self._changed = asyncio.Event()
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._num_waiting = 0
        self._num_running = 0
        self._started_at_s = 0.0
        self._closed = False

    # EngineClient

    async def start(self) -> None:
        self._started_at_s = self._started_at_s or time.monotonic()
        for member in self._members:
            member.start()

    async def wait_ready(self) -> EngineInfo:
        await self.start()
        while not self._closed and not any(member.up for member in self._members):
            refusals = [member.refusal for member in self._members if member.refusal is not None]
            if len(refusals) == len(self._members):
                raise refusals[0]
            await self._changed.wait()
        if self._closed:
            raise EngineDeadError("The connection to the upstream has been closed.")
        return self.info

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDeadError(self._detail())
        return self._info

    def health(self) -> EngineHealth:
        """`alive` is about this side: a restart of the server does not heal an upstream."""
        if self._closed:
            return EngineHealth("closed", False, False, "The engine has been stopped.")
        ready = any(member.up for member in self._members)
        down: EngineState = "starting" if self._info is None else "restarting"
        return EngineHealth("ready" if ready else down, ready, True, self._detail())

    def stats(self) -> EngineStats:
        """Counted here; the caches are the upstreams' own and known from their answers alone."""
        return msgspec.structs.replace(
            self._stats, num_running_reqs=self._num_running, num_waiting_reqs=self._num_waiting
        )

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Stream a request's outputs; use `contextlib.aclosing`, which aborts it if left early.

        Raises RequestError when the request cannot be served, OverloadedError when every upstream
        is busy, EngineDeadError when none is up or the one that answers breaks off.
        """
        check_request(request, self.info)
        hashes = block_hashes(request.prompt_token_ids, request.cache_salt)
        untried = set(range(len(self._members)))
        failure: M2Error | None = None
        while candidates := [i for i in sorted(untried) if self._members[i].up]:
            chosen = self._balancer.acquire(hashes, candidates)
            untried.discard(chosen)
            begun = False
            outputs = cast(
                AsyncGenerator[EngineOutput, None], self._counted(self._members[chosen], request)
            )
            try:
                async with aclosing(outputs):
                    async for output in outputs:
                        begun = True
                        yield output
                return
            except UpstreamError as error:
                if begun:
                    raise
                failure = error
            finally:
                self._balancer.release(chosen)
        if isinstance(failure, UpstreamBusyError):
            raise OverloadedError("The engine behind this server takes no more requests now.")
        raise failure or EngineDeadError(f"The engine is not ready: {self._detail()}")

    async def close(self) -> None:
        """End what runs and leave the upstreams alone; safe to call again."""
        self._closed = True
        self._wake()
        await asyncio.gather(*(member.close() for member in self._members))

    def look_now(self) -> None:
        """Look at the health of all upstreams at once."""
        for member in self._members:
            member.look_now()

    async def _counted(self, member: Member, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """The outputs of one member, counted in the statistics."""
        num_prompt_tokens = len(request.prompt_token_ids)
        self._num_waiting += 1
        waits = True
        outputs = cast(AsyncGenerator[EngineOutput, None], member.generate(request))
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if waits:
                        waits = False
                        self._num_waiting -= 1
                        self._num_running += 1
                        self._count(prompt_tokens=num_prompt_tokens)
                    self._count(step=1, generation_tokens=len(output.token_ids))
                    if output.finish_reason is not None:
                        self._count(
                            prefix_cache_queries=num_prompt_tokens,
                            prefix_cache_hits=output.num_cached_tokens,
                        )
                    yield output
        finally:
            if waits:
                self._num_waiting -= 1
            else:
                self._num_running -= 1

    def _count(self, **increments: int) -> None:
        counters = {name: getattr(self._stats, name) + by for name, by in increments.items()}
        self._stats = msgspec.structs.replace(self._stats, **counters)

    # Facts

    def _on_change(self, member: Member) -> None:
        if not member.up:
            self._balancer.forget(self._members.index(member))
        cards = [member.card for member in self._members if member.card is not None]
        if any(one.up for one in self._members):
            lengths = [card.max_model_len or self._model.max_model_len for card in cards]
            self._info = self._make_info(cards[0].owner, min(lengths))
        self._wake()

    def _make_info(self, owner: str, max_model_len: int) -> EngineInfo:
        """Of the upstreams' caches nothing is known.

        Clients see `device` and `dtype` in the fingerprint, so no address is in them.
        """
        load_time_s = time.monotonic() - self._started_at_s
        return EngineInfo(
            model=self._model.path,
            device=owner or "unnamed",
            dtype="upstream",
            max_model_len=max_model_len,
            vocab_size=self._model.vocab_size,
            used_vocab_size=self._model.used_vocab_size,
            max_num_seqs=0,
            max_num_batched_tokens=0,
            num_kv_blocks=0,
            kv_block_size=0,
            enable_prefix_caching=True,
            checks_structured_output=True,
            load_time_s=load_time_s if self._info is None else self._info.load_time_s,
        )

    def _detail(self) -> str:
        return "; ".join(member.detail for member in self._members if member.detail)

    def _wake(self) -> None:
        # Wakes everyone who waits now; whoever waits later waits for the next change.
        self._changed.set()
        self._changed.clear()
