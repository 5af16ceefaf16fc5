"""The life of one HTTP request in the engine: checked, admitted, run, and ended whatever happens.

Every sequence has a task that reads the engine and puts updates into one queue. Leaving the context
closes the engine's iterators, which aborts what still runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import cast

from m2serve.engine.client import EngineClient
from m2serve.engine.request import EngineOutput, EngineRequest
from m2serve.engine.validation import check_request
from m2serve.errors import EngineDeadError, M2Error
from m2serve.server.admission import Admission, Ticket
from m2serve.server.choice import Choice, ChoiceUpdate
from m2serve.server.errors import EngineRequestError
from m2serve.server.metrics import FinishedReason, Metrics, SequenceTimer
from m2serve.server.running import RunningRequests

logger = logging.getLogger(__name__)

Arrival = tuple[int, ChoiceUpdate]


@dataclass(frozen=True)
class Track:
    """One sequence: what the engine is asked, and what reads its answer."""

    request: EngineRequest
    choice: Choice


class Generation:
    """What has come from the engine, in order; `tracks` by the index of the choice."""

    def __init__(self, tracks: Sequence[Track]) -> None:
        self.tracks = tracks
        self._queue: asyncio.Queue[Arrival | Exception] = asyncio.Queue()
        self._num_open = len(tracks)

    @property
    def complete(self) -> bool:
        return self._num_open == 0

    def put(self, item: Arrival | Exception) -> None:
        """Hand over an update, or the error that ends everything."""
        self._queue.put_nowait(item)

    async def next(self, timeout_s: float | None = None) -> Arrival | None:
        """(index of the choice, update); None when nothing came in time.

        Raises what ended the generation: EngineDeadError, EngineRequestError, ServerClosingError.
        """
        if self._queue.empty():
            try:
                async with asyncio.timeout(timeout_s):
                    item = await self._queue.get()
            except TimeoutError:
                return None
        else:
            item = self._queue.get_nowait()
        if isinstance(item, Exception):
            raise item
        if item[1].finish_reason is not None:
            self._num_open -= 1
        return item

    async def updates(self) -> AsyncIterator[Arrival]:
        """All updates until every choice is complete."""
        while not self.complete:
            arrival = await self.next()
            assert arrival is not None
            yield arrival


class Generator:
    """Starts generations; holds what they share."""

    def __init__(
        self,
        engine: EngineClient,
        admission: Admission,
        running: RunningRequests,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._running = running
        self._metrics = metrics

    def check_open(self) -> None:
        """Raise what a request would be refused with whatever it asks: 503 in all cases."""
        self._running.check_open()
        if not self._engine.health().ready:
            raise EngineDeadError("The engine is not ready.")
        self._admission.check()

    @asynccontextmanager
    async def run(self, tracks: Sequence[Track]) -> AsyncIterator[Generation]:
        """Raises RequestError or EngineDeadError before anything is asked of the engine."""
        self.check_open()
        info = self._engine.info
        for track in tracks:
            check_request(track.request, info)
        lengths = [len(track.request.prompt_token_ids) for track in tracks]
        tickets = self._admission.admit(lengths)
        timers = [
            SequenceTimer(self._metrics, length, track.request.sampling.max_tokens)
            for track, length in zip(tracks, lengths, strict=True)
        ]
        generation = Generation(tracks)
        with self._running.track(generation.put):
            tasks = [
                asyncio.create_task(self._follow(generation, index, tickets[index], timers[index]))
                for index in range(len(tracks))
            ]
            try:
                yield generation
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                # A task that was cancelled before its first step has not cleaned up.
                for ticket, timer in zip(tickets, timers, strict=True):
                    ticket.leave()
                    timer.finish("abort")

    async def _follow(
        self, generation: Generation, index: int, ticket: Ticket, timer: SequenceTimer
    ) -> None:
        track = generation.tracks[index]
        reason: FinishedReason = "abort"
        try:
            outputs = cast(AsyncGenerator[EngineOutput, None], self._engine.generate(track.request))
            async with aclosing(outputs):
                reason = await self._read(outputs, generation, index, ticket, timer)
        except Exception as error:
            if not isinstance(error, M2Error):
                logger.exception("request %s failed", track.request.request_id)
            reason = "error"
            generation.put(error)
        finally:
            ticket.leave()
            timer.finish(reason, track.choice.num_cached_tokens)

    async def _read(
        self,
        outputs: AsyncIterator[EngineOutput],
        generation: Generation,
        index: int,
        ticket: Ticket,
        timer: SequenceTimer,
    ) -> FinishedReason:
        choice = generation.tracks[index].choice
        async for output in outputs:
            ticket.leave()
            if output.finish_reason == "error":
                raise EngineRequestError(output.error or "The engine failed on this request.")
            update = choice.update(output)
            timer.output(len(update.token_ids))
            generation.put((index, update))
            if update.finish_reason is not None:
                return "stop" if update.finish_reason == "tool_calls" else update.finish_reason
        raise EngineDeadError("The engine ended an answer without a reason.")
