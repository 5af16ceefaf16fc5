"""An engine that this process has started, behind the interface of all engines.

The process is `process.EngineProcess`, its answers come through `engine.upstream`. No torch.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from m2serve.engine.client import EngineHealth
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats
from m2serve.engine.upstream import UpstreamEngine
from m2serve.errors import EngineDeadError, M2Error, ResourceError
from m2serve.launch.engine_log import loaded_fraction, telling_lines
from m2serve.launch.process import EngineProcess

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_MAX_BACKOFF_S = 60.0

Explain = Callable[[str], Sequence[object]]


class LaunchedEngine:
    """EngineClient for a command; `name` is the engine's, for sentences.

    A failure of the first start is final. Later, with `restart`, the command is started again
    `backoff_s` after its death, doubled each time; `max_deaths` in a row without a token are the
    end, as is the first one without `restart`. `explain` turns the end of a log into explanations
    that can be printed.
    """

    def __init__(
        self,
        process: EngineProcess,
        upstream: UpstreamEngine,
        name: str,
        *,
        restart: bool = False,
        explain: Explain = lambda text: (),
        max_deaths: int = 3,
        backoff_s: float = 1.0,
    ) -> None:
        self._process = process
        self._upstream = upstream
        self._name = name
        self._restart = restart
        self._explain = explain
        self._max_deaths = max_deaths
        self._backoff_s = backoff_s
        self._progress: float | None = None
        self._failure: M2Error | None = None
        self._task: asyncio.Task[M2Error] | None = None

    async def start(self) -> None:
        if self._task is None:
            self._start_process()
            await self._upstream.start()
            self._task = asyncio.create_task(self._watch(), name=f"watch {self._name}")

    async def wait_ready(self) -> EngineInfo:
        """Raises ResourceError with the cause when the command ends before its first token."""
        await self.start()
        assert self._task is not None
        ready = asyncio.create_task(self._upstream.wait_ready())
        try:
            await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise self._task.result()
            return ready.result()
        finally:
            ready.cancel()

    @property
    def info(self) -> EngineInfo:
        return self._upstream.info

    def health(self) -> EngineHealth:
        health = self._upstream.health()
        if health.state == "closed" or health.ready:
            return health
        if self._failure is not None:
            return EngineHealth("dead", False, False, str(self._failure))
        detail = f"{self._name} is starting; its log is {self._process.log_path}."
        return replace(health, detail=detail, progress=self._progress)

    def stats(self) -> EngineStats:
        return self._upstream.stats()

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        return self._upstream.generate(request)

    async def close(self) -> None:
        """End the command and all it has started; safe to call again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._upstream.close()
        await self._process.stop()

    def _start_process(self) -> None:
        try:
            self._process.start()
        except OSError as error:
            raise ResourceError(f"{self._name} cannot be started: {error}") from error

    async def _watch(self) -> M2Error:
        """The cause of the death that was the last."""
        num_deaths = 0
        while True:
            generated = await self._live()
            self._upstream.look_now()
            num_deaths = 0 if generated else num_deaths + 1
            failure = self._describe_death()
            if not self._restart or not self._has_been_ready() or num_deaths >= self._max_deaths:
                self._failure = failure
                return failure
            delay_s = min(self._backoff_s * 2**num_deaths, _MAX_BACKOFF_S)
            logger.error("%s; it is started again in %.0f s", failure, delay_s)
            await asyncio.sleep(delay_s)
            try:
                self._start_process()
            except ResourceError as error:
                self._failure = error
                return error

    async def _live(self) -> bool:
        """Follow the command to its end: whether it has generated a token."""
        generated = False
        while self._process.poll() is None:
            for line in self._process.new_lines():
                self._progress = loaded_fraction(line) or self._progress
            generated = generated or self._upstream.health().ready
            await asyncio.sleep(_POLL_S)
        self._progress = None
        return generated

    def _describe_death(self) -> M2Error:
        tail = self._process.tail()
        logger.error("From the log of %s:\n%s", self._name, "\n".join(telling_lines(tail)))
        for explanation in self._explain(tail):
            logger.error("%s", explanation)
        code = self._process.poll()
        how = f"ended with exit status {code}"
        if code is not None and code < 0:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        kind = EngineDeadError if self._has_been_ready() else ResourceError
        return kind(f"{self._name} {how}; its log is {self._process.log_path}")

    def _has_been_ready(self) -> bool:
        try:
            return bool(self._upstream.info)
        except EngineDeadError:
            return False
