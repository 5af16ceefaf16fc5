"""The engine process: `python -m m2serve.engine.process --fd N`.

The main thread runs steps and takes new requests and aborts in between. What a step has brought is
encoded and sent by a thread of its own, and another reads the socket, both while the next step
computes: the native library runs without Python's lock. A fourth sends a heartbeat. The process
ends with the one that started it: by a signal from the kernel on Linux, and when the socket closes.
An exception in a step ends it with its traceback on stderr; the parent starts it again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Protocol

from m2serve.engine import frames
from m2serve.engine.config import EngineConfig
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats
from m2serve.environment import ask_for_huge_pages
from m2serve.errors import M2Error, RequestError

HEARTBEAT_S = 1.0
_PROGRESS_S = 0.2
_PR_SET_PDEATHSIG = 1
# Steps that may wait to be sent while the parent does not read.
_MAX_STEPS_UNSENT = 64


class SteppedEngine(Protocol):
    """What the loop drives; `engine.Engine` is one."""

    @property
    def info(self) -> EngineInfo: ...
    def add(self, request: EngineRequest) -> None: ...
    def abort(self, request_ids: Iterable[str]) -> list[EngineOutput]: ...
    def step(self) -> list[EngineOutput]: ...
    def has_work(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    def layers_computed(self) -> int: ...


Progress = Callable[[float], None]
Load = Callable[[EngineConfig, Progress], SteppedEngine]


class Connection:
    """The child's end of the socket: `inbox` fills and the outbox empties by itself.

    The inbox has no bound, so that the parent never waits for a step; the parent bounds what it
    sends. `send` is safe from any thread.
    """

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self._send_lock = threading.Lock()
        self.inbox: queue.SimpleQueue[frames.ToEngine] = queue.SimpleQueue()
        self._outbox: queue.Queue[tuple[list[EngineOutput], EngineStats]]
        self._outbox = queue.Queue(_MAX_STEPS_UNSENT)
        self.step = 0
        self.layers_computed: Callable[[], int] = lambda: 0
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._write, name="writer", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def post(self, outputs: list[EngineOutput], stats: EngineStats) -> None:
        """Leave a step's news to be sent; waits while the parent has not read much older ones."""
        self.step = stats.step
        self._outbox.put((outputs, stats))

    def flush(self) -> None:
        """Wait until all that was posted is sent."""
        self._outbox.join()

    def send(self, message: frames.FromEngine) -> None:
        """Waits while the parent does not read."""
        frame = frames.encode_frame(message)
        try:
            with self._send_lock:
                self._socket.sendall(frame)
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        with self._socket.makefile("rb") as stream:
            try:
                while header := stream.read(frames.HEADER_BYTES):
                    payload = stream.read(frames.payload_size(header))
                    self.inbox.put(frames.decode_to_engine(payload))
            except OSError:
                pass
            except Exception:
                traceback.print_exc()
                os._exit(1)
        # The parent is gone or does not want us any more; a step may still be running.
        os._exit(0)

    def _write(self) -> None:
        try:
            while True:
                self._send_step(*self._outbox.get())
                self._outbox.task_done()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    def _send_step(self, outputs: list[EngineOutput], stats: EngineStats) -> None:
        # Prompt logprobs can be tens of megabytes each; several must not add up to one frame.
        large = [output for output in outputs if output.prompt_logprobs is not None]
        for output in large:
            self.send(frames.Outputs([output], stats))
        rest = [output for output in outputs if output.prompt_logprobs is None]
        self.send(frames.Outputs(rest, stats))

    def _beat(self) -> None:
        while True:
            self.send(frames.Heartbeat(self.step, self.layers_computed()))
            time.sleep(HEARTBEAT_S)


def run(fd: int, load: Load) -> int:
    """Take the config from the socket, load, serve; the exit status when loading fails.

    `load` returns an engine that has generated a token, or raises M2Error.
    """
    _end_with_parent()
    ask_for_huge_pages()
    connection = Connection(fd)
    start = connection.inbox.get()
    assert isinstance(start, frames.Start), "the first frame is the config"
    try:
        engine = load(start.config, _throttled(connection))
    except M2Error as error:
        if os.environ.get("M2_DEBUG") == "1":
            traceback.print_exc()
        connection.send(frames.Failed(message=str(error), kind=type(error).__name__))
        return 1
    connection.layers_computed = engine.layers_computed
    connection.send(frames.Ready(engine.info))
    # What loading made stays; looking through it again and again would take a tenth of a second.
    gc.collect()
    gc.freeze()
    serve(connection, engine)
    return 0


def serve(connection: Connection, engine: SteppedEngine) -> None:
    """Run steps for ever, or until one raises; what was computed before is sent first."""
    try:
        while True:
            outputs = _take_messages(connection.inbox, engine)
            if engine.has_work():
                outputs += engine.step()
            connection.post(outputs, engine.stats())
    finally:
        connection.flush()


def _take_messages(
    inbox: queue.SimpleQueue[frames.ToEngine], engine: SteppedEngine
) -> list[EngineOutput]:
    """Hand over what has arrived; waits for a message when there is nothing to compute."""
    outputs: list[EngineOutput] = []
    while not inbox.empty() or not (outputs or engine.has_work()):
        match inbox.get():
            case frames.Add(request=request):
                outputs += _add(engine, request)
            case frames.Abort(request_ids=request_ids):
                outputs += engine.abort(request_ids)
    return outputs


def _add(engine: SteppedEngine, request: EngineRequest) -> list[EngineOutput]:
    try:
        engine.add(request)
    except RequestError as error:
        failed = EngineOutput(
            request_id=request.request_id, finish_reason="error", error=str(error)
        )
        return [failed]
    return []


def _throttled(connection: Connection) -> Progress:
    """Sends LoadProgress, a few a second."""
    last_s = -_PROGRESS_S

    def send(fraction: float) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _PROGRESS_S:
            last_s = time.monotonic()
            connection.send(frames.LoadProgress(fraction))

    return send


def _end_with_parent() -> None:
    """Nothing but the parent ends this process: Ctrl-C and a service's SIGTERM are its to handle.

    A parent that died before this call is noticed by the closed socket.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description="The engine process; started by m2 serve.")
    parser.add_argument("--fd", type=int, required=True, help="socket to the parent")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

    def load(config: EngineConfig, progress: Progress) -> SteppedEngine:
        from m2serve.engine.engine import Engine

        return Engine.load(config, progress=progress)

    return run(arguments.fd, load)


if __name__ == "__main__":
    sys.exit(main())
