"""Step after step: scheduled, computed, taken in; on a CPU the next is computed meanwhile.

    run(N)   ......|schedule N+1|compute N+1 .............|compute N+2 ....
    Python         |take in N, send it on, schedule N+2   |take in N+1, ...

A step of plain decodes is handed to the native library (`decode_ahead.py`), and the one behind it
before its tokens are known. Any other step is waited for at once.
"""

from __future__ import annotations

from m2serve.engine.decode_ahead import StepUnderWay
from m2serve.engine.model_runner import ModelRunner
from m2serve.engine.request import EngineOutput
from m2serve.engine.scheduler import Scheduler


class StepLoop:
    """Owns the scheduler, and the step that is under way between two calls of `step`."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._ahead: StepUnderWay | None = None

    def step(self, *, run_ahead: bool = True) -> list[EngineOutput]:
        """Finish a step and take it in; with `run_ahead` the next is started before, if it can be.

        An exception means that the engine cannot go on.
        """
        under_way = self._take_ahead()
        if under_way is None:
            step = self.scheduler.schedule()
            under_way = self._runner.start(step, self.scheduler.sequences)
            if under_way is None:
                results = self._runner.run(step, self.scheduler.sequences)
                return self.scheduler.update(step, results)
        if run_ahead:
            self._start_ahead(under_way)
        return self.scheduler.update(under_way.step, self._runner.finish(under_way))

    def _take_ahead(self) -> StepUnderWay | None:
        """The step started before; one that all who wanted it have left is thrown away."""
        under_way, self._ahead = self._ahead, None
        if under_way is None or self.scheduler.is_awaited(under_way.step):
            return under_way
        self._runner.discard()
        return None

    def _start_ahead(self, under_way: StepUnderWay) -> None:
        step = self.scheduler.schedule_ahead(under_way.step, self._runner.can_run_ahead)
        if step is not None:
            self._ahead = self._runner.start(step, self.scheduler.sequences, under_way)
            assert self._ahead is not None
