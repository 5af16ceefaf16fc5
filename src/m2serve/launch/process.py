"""Start an engine's command, watch it, and end it with everything it has started.

    python -m m2serve.launch.process SECONDS COMMAND...

is the guard that stands between this process and the engine. It reads nothing but the end of its
standard input, which comes whenever this process ends, however it ends, and then it ends the
engine: SIGTERM to the process group, after SECONDS SIGKILL to every descendant, also to those that
left the group. Descendants whose parent is gone become the guard's own (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_ORPHAN_GRACE_S = 2.0
_KILL_TIMEOUT_S = 5.0
_POLL_S = 0.1
_GUARD = (sys.executable, "-m", "m2serve.launch.process")
_PR_SET_CHILD_SUBREAPER = 36
_MAX_NEW_BYTES = 1024 * 1024


class EngineProcess:
    """One command, started again and again; what it prints goes to the end of `log_path`.

    The log is a file rather than a pipe, so that an engine never waits for its reader.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        *,
        stop_grace_s: float = 20.0,
    ) -> None:
        self.log_path = log_path
        self._stop_grace_s = stop_grace_s
        self._argv = tuple(argv)
        self._env = dict(env)
        self._guard: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._log_read = 0
        self._rest = b""

    def start(self) -> None:
        """Start it; raises OSError when this Python or the log cannot be used.

        A command that does not exist ends with status 127 and a line in the log.
        """
        with self.log_path.open("ab") as log:
            self._log_start = self._log_read = log.tell()
            self._rest = b""
            # A session of its own: Ctrl-C in the terminal is for this process alone, which ends
            # the engine when the running requests are done.
            self._guard = subprocess.Popen(
                [*_GUARD, str(self._stop_grace_s), *self._argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._env},
            )

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs or was never started."""
        return None if self._guard is None else self._guard.poll()

    def new_lines(self) -> list[str]:
        """What has been printed since the last call, at most a megabyte of it.

        A carriage return, with which progress bars draw over themselves, ends a line, too.
        """
        with self.log_path.open("rb") as log:
            log.seek(self._log_read)
            data = log.read(_MAX_NEW_BYTES)
        self._log_read += len(data)
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        return [line.decode(errors="replace") for line in lines if line.strip()]

    def tail(self, max_bytes: int = 65_536) -> str:
        """The end of what has been printed since the last start."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - max_bytes))
            return log.read(max_bytes).decode(errors="replace")
        return ""

    async def stop(self) -> None:
        """End it and everything it has started; returns in any case, safe to call again."""
        guard = self._guard
        if guard is None:
            return
        assert guard.stdin is not None
        with contextlib.suppress(OSError):
            guard.stdin.close()
        end = time.monotonic() + self._stop_grace_s + _ORPHAN_GRACE_S + 2 * _KILL_TIMEOUT_S
        while guard.poll() is None and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        # Also when the guard was killed itself: its group is the engine's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(guard.pid, signal.SIGKILL)
        while guard.poll() is None and time.monotonic() < end + 1:
            await asyncio.sleep(_POLL_S)


def guard(stop_grace_s: float, argv: Sequence[str]) -> int:
    """Run the command until it ends or the standard input does; its exit status."""
    # Handlers that do nothing, unlike SIG_IGN, are not inherited by the engine.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        engine = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{argv[0]} cannot be started: {error.strerror}", flush=True)
        return 127
    while engine.poll() is None and not _input_has_ended():
        _reap_orphans(engine.pid)
    _end_group(engine, stop_grace_s)
    return engine.wait()


def _input_has_ended() -> bool:
    """Waits a moment for it."""
    readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def _end_group(engine: subprocess.Popen[bytes], stop_grace_s: float) -> None:
    """The engine may take its time; what it leaves behind gets a moment."""
    os.killpg(os.getpgrp(), signal.SIGTERM)
    _wait_until(lambda: engine.poll() is not None, stop_grace_s)
    _wait_until(lambda: not _descendants(engine), _ORPHAN_GRACE_S)
    end = time.monotonic() + _KILL_TIMEOUT_S
    # A process may start another while its siblings are being ended.
    while (left := _descendants(engine)) and time.monotonic() < end:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_POLL_S)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(_POLL_S)


def _descendants(engine: subprocess.Popen[bytes]) -> list[psutil.Process]:
    engine.poll()
    _reap_orphans(engine.pid)
    return psutil.Process().children(recursive=True)


def _reap_orphans(engine_pid: int) -> None:
    """Orphans that ended are zombies of ours; the engine itself is left to its Popen."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid != engine_pid and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


if __name__ == "__main__":
    status = guard(float(sys.argv[1]), sys.argv[2:])
    # As the engine ended, so does the guard: its parent reads the signal from the status.
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take back
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
