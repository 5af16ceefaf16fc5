"""Contenders: programs that are run once a round, or stand ready, stopped, between rounds."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import psutil

from scripts.peers.figures import RESULT, Figures, result_line

ROOT = Path(__file__).resolve().parents[2]
_TAIL_CHARS = 300


class Failed(Exception):
    """A contender gave no figure; the sentence says why."""


class Contender(Protocol):
    """Something that can be measured again and again; `command` is how anyone repeats it."""

    @property
    def name(self) -> str: ...

    @property
    def argv(self) -> tuple[str, ...]: ...

    @property
    def command(self) -> str: ...

    def open(self) -> None: ...

    def measure(self) -> Figures: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Program:
    """Started anew for every measurement, in `folder`, for some leave files where they run.

    `read` gets what it prints; with `stderr_too` also that on stderr, behind the rest.
    """

    name: str
    argv: tuple[str, ...]
    read: Callable[[str], Figures]
    timeout_s: float = 300.0
    folder: Path = ROOT
    stderr_too: bool = False

    @property
    def command(self) -> str:
        return shown(self.argv)

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def measure(self) -> Figures:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                self.argv,
                cwd=self.folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"not finished within {self.timeout_s:g} s") from error
        except OSError as error:
            raise Failed(f"cannot be started: {error}") from error
        if done.returncode:
            raise Failed(f"exit code {done.returncode}: {reason(done.stderr)}")
        printed = done.stdout + done.stderr if self.stderr_too else done.stdout
        try:
            return self.read(printed)
        except (ValueError, KeyError) as error:
            raise Failed(f"unreadable output ({error}): {printed[-_TAIL_CHARS:]}") from error


def reason(stderr: str) -> str:
    """Why a program ended: its failed assertions, which a debugger's backtrace may follow, else
    its last words."""
    asserted = [line.strip() for line in stderr.splitlines() if "GGML_ASSERT" in line]
    return asserted[0][-_TAIL_CHARS:] if asserted else stderr[-_TAIL_CHARS:].strip()


@dataclass
class Worker:
    """Started once; for every line it gets it measures and prints a RESULT line."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    timeout_s: float = 900.0
    _process: subprocess.Popen[str] | None = field(default=None, init=False)

    @property
    def command(self) -> str:
        return shown(self.argv, self.env)

    def open(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self._process = started(
                self.argv,
                env={**os.environ, **self.env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.measure()  # which also warms up

    def measure(self) -> Figures:
        process = self._running()
        thaw(process.pid)
        deadline = threading.Timer(self.timeout_s, end, [process])  # it closes the pipe
        deadline.start()
        try:
            pipe = _pipe(process.stdin)
            pipe.write("measure\n")
            pipe.flush()
            for line in _pipe(process.stdout):
                if line.startswith(RESULT):
                    return result_line(line)
        except BrokenPipeError:
            pass
        finally:
            deadline.cancel()
            freeze(process.pid)
        raise Failed(f"ended early or took more than {self.timeout_s:g} s, see {self.log}")

    def close(self) -> None:
        if self._process is not None:
            end(self._process)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise Failed("was not started")
        return self._process


def started(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int,
    stdout: int | IO[str],
    stderr: int | IO[str],
) -> subprocess.Popen[str]:
    """Raises Failed where there is no such program."""
    try:
        return subprocess.Popen(
            argv, cwd=ROOT, env=env, stdin=stdin, stdout=stdout, stderr=stderr, text=True
        )
    except OSError as error:
        raise Failed(f"cannot be started: {error}") from error


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise Failed("has no pipe")
    return pipe


def freeze(pid: int) -> None:
    """Stop a process and its children, so that they take nothing from who is measured."""
    for process in family(pid):
        with suppress(psutil.Error):
            process.suspend()


def thaw(pid: int) -> None:
    for process in family(pid):
        with suppress(psutil.Error):
            process.resume()


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def end(process: subprocess.Popen[str], grace_s: float = 20.0) -> None:
    """Terminate a process with all its children, by force after a while."""
    members = family(process.pid)
    thaw(process.pid)
    for member in members:
        with suppress(psutil.Error):
            member.terminate()
    _, alive = psutil.wait_procs(members, timeout=grace_s)
    for member in alive:
        with suppress(psutil.Error):
            member.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_s)


def shown(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """The command with files relative to the repository, and outside of it by their name."""
    words = [f"{name}={_nearby(value)}" for name, value in (env or {}).items()]
    return shlex.join([*words, Path(argv[0]).name, *map(_nearby, argv[1:])])


def _nearby(word: str) -> str:
    if not word.startswith("/"):
        return word
    return word.removeprefix(f"{ROOT}/") if word.startswith(f"{ROOT}/") else Path(word).name


def busy_cores(seconds: float = 0.5) -> float:
    """Cores in use by anyone while this process sleeps."""
    before = psutil.cpu_times()
    start = time.perf_counter()
    time.sleep(seconds)
    elapsed_s = time.perf_counter() - start
    after = psutil.cpu_times()
    used = sum(after) - sum(before) - (after.idle - before.idle) - (after.iowait - before.iowait)
    return max(used, 0.0) / elapsed_s
