"""Step after step: scheduled, computed, taken in; on a CPU the next is computed meanwhile.

    library   compute N .......|compute N+1 .............|compute N+2 ....
    Python       schedule N+1  |take in N, schedule N+2  |take in N+1, ...

A step of plain decodes is handed to the native library (`decode_ahead.py`), and the one behind it
before its tokens are known. Any other step is waited for at once. The price: a request that comes
while N is computed waits for N+1, too, before its prompt is read.
"""

from __future__ import annotations

from m2serve.engine.decode_ahead import DecodeAhead, StepUnderWay
from m2serve.engine.model_runner import ModelRunner
from m2serve.engine.request import EngineOutput
from m2serve.engine.scheduler import Scheduler


class StepLoop:
    """Owns the scheduler, and the step that is under way between two calls of `step`."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._under_way: StepUnderWay | None = None

    def step(self, *, run_ahead: bool = True) -> list[EngineOutput]:
        """Finish a step and take it in; with `run_ahead` the next is started before, if it can be.

        After an exception the requests that were running cannot go on.
        """
        scheduler, ahead = self.scheduler, self._runner.ahead
        under_way, self._under_way = self._under_way, None
        if under_way is None or not scheduler.is_awaited(under_way.step):
            step = scheduler.schedule()
            if ahead is None or not ahead.can_start(step, scheduler.sequences):
                return scheduler.update(step, self._runner.run(step, scheduler.sequences))
            under_way = ahead.start(step, scheduler.sequences)
        assert ahead is not None
        behind = self._start_behind(under_way, ahead) if run_ahead else None
        outputs = scheduler.update(under_way.step, ahead.finish(under_way))
        self._under_way = behind
        return outputs

    def _start_behind(self, under_way: StepUnderWay, ahead: DecodeAhead) -> StepUnderWay | None:
        step = self.scheduler.schedule_ahead(under_way.step, ahead.can_run)
        return None if step is None else ahead.start(step, self.scheduler.sequences, under_way)
