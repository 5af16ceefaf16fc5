"""The engine in a process of its own: started, watched, restarted, and its requests routed.

The parent side of `process.py`, on the event loop of the server. No torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence

from m2serve import errors
from m2serve.engine import frames
from m2serve.engine.child import ENGINE_COMMAND, EngineChild
from m2serve.engine.client import EngineHealth, EngineState
from m2serve.engine.config import EngineConfig
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats
from m2serve.engine.validation import check_request
from m2serve.errors import EngineDeadError, M2Error, RequestError

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 30.0
_FAILURES: dict[str, type[M2Error]] = {
    kind.__name__: kind
    for kind in (
        errors.UsageError,
        errors.ConfigError,
        errors.CheckpointError,
        errors.ResourceError,
    )
}


class SupervisedEngine:
    """EngineClient for our own engine.

    A failure of the first start is final, `wait_ready` raises its cause. After that a process that
    dies is started again, after `backoff_s`, doubled with each death; `max_deaths` in a row
    without becoming ready are the end. `alive` turns false when no frame has come from the
    process, or no layer was computed although a request waits, for `liveness_timeout_s`; a step
    may take longer than that. The process beats every second, whatever it computes: one that is
    silent for `hang_timeout_s` is killed, which counts as a death.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        liveness_timeout_s: float = 60.0,
        hang_timeout_s: float = 120.0,
        max_deaths: int = 3,
        backoff_s: float = 0.5,
        stop_grace_s: float = 5.0,
    ) -> None:
        self._config = config
        self._command = command
        self._liveness_timeout_s = liveness_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._max_deaths = max_deaths
        self._backoff_s = backoff_s
        self._stop_grace_s = stop_grace_s
        self._state: EngineState = "starting"
        self._detail = "The engine is starting."
        self._progress: float | None = None
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._computed = (0, 0)  # steps, layers
        self._computed_at_s = 0.0
        self._failure: M2Error = EngineDeadError("The engine has not been started.")
        self._changed = asyncio.Event()
        self._child: EngineChild | None = None
        self._queues: dict[str, asyncio.Queue[EngineOutput | M2Error]] = {}
        self._task: asyncio.Task[None] | None = None

    # EngineClient

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def wait_ready(self) -> EngineInfo:
        await self.start()
        while self._state not in ("ready", "dead", "closed"):
            await self._changed.wait()
        if self._state != "ready":
            raise self._failure
        return self.info

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDeadError(self._detail)
        return self._info

    def health(self) -> EngineHealth:
        alive = self._is_alive()
        ready = self._state == "ready" and alive
        return EngineHealth(self._state, ready, alive, self._detail, self._progress)

    def stats(self) -> EngineStats:
        return self._stats

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Stream a request's outputs; use `contextlib.aclosing`, which aborts it if left early.

        Raises RequestError when the request cannot be served, EngineDeadError.
        """
        frame = self._frame_of(request)
        child = self._child
        if self._state != "ready" or child is None:
            raise EngineDeadError(f"The engine is not ready: {self._detail}")
        if not self._queues:
            self._computed_at_s = time.monotonic()
        queue = self._queues[request.request_id] = asyncio.Queue()
        finished = False
        try:
            child.send(frame)
            while not finished:
                output = await queue.get()
                finished = isinstance(output, M2Error) or output.finish_reason is not None
                if isinstance(output, M2Error):
                    raise output
                yield output
        finally:
            self._queues.pop(request.request_id, None)
            if not finished:
                child.send(frames.encode_frame(frames.Abort([request.request_id])))

    async def close(self) -> None:
        """End the process and fail what is running; safe to call again."""
        self._end("closed", EngineDeadError("The engine has been stopped."))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # One life after the other

    async def _supervise(self) -> None:
        try:
            failure = await self._live_again_and_again()
        except Exception:
            logger.exception("The supervisor of the engine failed.")
            failure = EngineDeadError("The supervisor of the engine failed; the log has the cause.")
        self._end("dead", failure)

    async def _live_again_and_again(self) -> M2Error:
        """The cause of the last death."""
        num_deaths = 0
        while True:
            failure, was_ready = await self._live()
            num_deaths = 0 if was_ready else num_deaths + 1
            if self._info is None or num_deaths >= self._max_deaths:
                return failure
            self._set_state("restarting", f"{failure} It is being restarted.")
            logger.error("%s", self._detail)
            self._fail_requests(failure)
            await asyncio.sleep(min(self._backoff_s * 2**num_deaths, _MAX_BACKOFF_S))

    async def _live(self) -> tuple[M2Error, bool]:
        """Start the process and route its messages until its end: (cause, has it been ready)."""
        try:
            child = self._child = await EngineChild.spawn(self._config, self._command)
        except OSError as error:
            return EngineDeadError(f"The engine process cannot be started: {error}."), False
        failure: M2Error | None = None
        try:
            failure = await self._route_messages(child)
            was_ready = self._state == "ready"
            self._set_state("restarting", "The engine has closed its connection.")
            await child.wait(self._stop_grace_s)
        finally:
            self._child = None
            self._progress = None
            await child.stop(self._stop_grace_s)
        return failure or EngineDeadError(f"The engine {child.cause_of_death()}."), was_ready

    async def _route_messages(self, child: EngineChild) -> M2Error | None:
        """Until the process ends (None), fails to load, or hangs."""
        while True:
            try:
                async with asyncio.timeout(self._hang_timeout_s):
                    message = await child.receive()
            except TimeoutError:
                return EngineDeadError(
                    f"The engine was silent for {self._hang_timeout_s:g} s and has been killed."
                )
            if message is None:
                return None
            if isinstance(message, frames.Failed):
                return _FAILURES.get(message.kind, EngineDeadError)(message.message)
            self._take(message)

    def _take(self, message: frames.FromEngine) -> None:
        match message:
            case frames.LoadProgress(fraction=fraction):
                self._progress = fraction
                self._detail = f"The engine is loading the checkpoint ({fraction:.0%})."
            case frames.Ready(info=info):
                self._info = info
                self._progress = None
                self._set_state("ready", "")
            case frames.Heartbeat(step=step, layers=layers):
                self._take_computed(step, layers)
            case frames.Outputs(outputs=outputs, stats=stats):
                self._stats = stats
                self._take_computed(stats.step, self._computed[1])
                for output in outputs:
                    # Unknown: its iterator was closed and the abort is still under way.
                    if (queue := self._queues.get(output.request_id)) is not None:
                        queue.put_nowait(output)

    # Facts

    def _frame_of(self, request: EngineRequest) -> bytes:
        check_request(request, self.info)
        if request.request_id in self._queues:
            raise RequestError(f"request_id {request.request_id!r} is already being served")
        try:
            return frames.encode_frame(frames.Add(request))
        except frames.FrameError as error:
            raise RequestError(f"The request is too large for the engine: {error}") from error

    def _take_computed(self, steps: int, layers: int) -> None:
        if (steps, layers) != self._computed:
            self._computed = steps, layers
            self._computed_at_s = time.monotonic()

    def _is_alive(self) -> bool:
        if self._state in ("dead", "closed"):
            return False
        since = time.monotonic() - self._liveness_timeout_s
        if self._child is not None and self._child.last_frame_at_s < since:
            return False
        return not self._queues or self._computed_at_s >= since

    def _fail_requests(self, failure: M2Error) -> None:
        for queue in self._queues.values():
            queue.put_nowait(EngineDeadError(f"{failure} The request can be sent again."))
        self._queues.clear()
        self._stats = EngineStats()

    def _end(self, state: EngineState, failure: M2Error) -> None:
        self._failure = failure
        self._set_state(state, str(failure))
        self._fail_requests(failure)

    def _set_state(self, state: EngineState, detail: str) -> None:
        if self._state == "closed":
            return
        self._state = state
        self._detail = detail
        # Wakes everyone who waits now; whoever waits later waits for the next change.
        self._changed.set()
        self._changed.clear()
