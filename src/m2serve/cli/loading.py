"""Load progress of an engine: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from m2serve.engine.client import EngineClient

_POLL_S = 0.1
_LINE_EVERY = 0.25


@contextlib.contextmanager
def show_loading(engine: EngineClient) -> Iterator[None]:
    """Follow `engine.health()` from a thread of its own until ready, dead or the block ends."""
    done = threading.Event()
    follow = _draw_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=follow, args=(engine, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _fractions(engine: EngineClient, done: threading.Event) -> Iterator[float]:
    while not done.wait(_POLL_S):
        health = engine.health()
        if health.state != "starting":
            return
        if health.progress is not None:
            yield health.progress


def _draw_bar(engine: EngineClient, done: threading.Event) -> None:
    columns = (TextColumn("loading"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading", total=1.0)
        for fraction in _fractions(engine, done):
            progress.update(task, completed=fraction)


def _print_lines(engine: EngineClient, done: threading.Event) -> None:
    next_line = _LINE_EVERY
    for fraction in _fractions(engine, done):
        if fraction >= next_line:
            print(f"loading {fraction:.0%}", file=sys.stderr, flush=True)
            next_line = fraction + _LINE_EVERY
