"""The HTTP requests being served: counted, so that a shutdown can wait for them and end them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from m2serve.server.errors import ServerClosingError


class RunningRequests:
    """`draining`: nothing new is taken. Each request registers how it can be ended early."""

    def __init__(self) -> None:
        self.draining = False
        self._enders: dict[object, Callable[[Exception], None]] = {}

    @property
    def num_running(self) -> int:
        return len(self._enders)

    def check_open(self) -> None:
        """Raise ServerClosingError while draining."""
        if self.draining:
            raise ServerClosingError

    @contextmanager
    def track(self, end: Callable[[Exception], None]) -> Iterator[None]:
        """Count the request; `end` may be called with an error while it runs."""
        key = object()
        self._enders[key] = end
        try:
            yield
        finally:
            del self._enders[key]

    def end_all(self) -> None:
        """Tell every request that the server is going down; they end on their own."""
        for end in list(self._enders.values()):
            end(ServerClosingError("The server was shut down before the answer was complete."))
