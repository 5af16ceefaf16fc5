"""The one interface through which the server talks to any engine.

Token ids and sampling parameters in, token ids out. Implementations: `supervisor.py` (our own
engine in a process of its own), `scripted.py` (forced answers) and, later, `upstream.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats

EngineState = Literal["starting", "ready", "restarting", "dead", "closed"]


@dataclass(frozen=True)
class EngineHealth:
    """`ready`: a token has been generated since the last (re)start. `alive`: steps, or layers of a
    long one, are computed while work is queued. `detail` is a sentence for a person (load progress,
    cause of death).
    """

    state: EngineState
    ready: bool
    alive: bool
    detail: str = ""
    progress: float | None = None


class EngineClient(Protocol):
    async def start(self) -> None:
        """Start the engine without waiting for it to be ready."""

    async def wait_ready(self) -> EngineInfo:
        """Return when a token has been generated; raise M2Error with the cause if it fails."""

    @property
    def info(self) -> EngineInfo:
        """Facts of the engine; raises EngineDeadError before it has first become ready."""

    def health(self) -> EngineHealth: ...

    def stats(self) -> EngineStats:
        """The newest counters; never waits."""

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Stream outputs until one carries a finish_reason.

        Closing the iterator early (aclose, cancellation) aborts the request in the engine. Raises
        EngineDeadError when the engine is not ready or dies; the request is not tried again.
        """

    async def close(self) -> None:
        """Stop the engine and everything it started."""
