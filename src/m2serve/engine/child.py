"""One life of the engine process, seen from the process that started it. No torch."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from m2serve.engine import frames
from m2serve.engine.config import EngineConfig

ENGINE_COMMAND = (sys.executable, "-m", "m2serve.engine.process")
_READ_BUFFER_BYTES = 1024 * 1024
_POLL_S = 0.01


class EngineChild:
    """A started engine process and the socket to it; `receive` belongs to one task."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.last_frame_at_s = time.monotonic()

    @classmethod
    async def spawn(
        cls, config: EngineConfig, command: Sequence[str] = ENGINE_COMMAND
    ) -> EngineChild:
        """Start the process and send it its config; raises OSError when it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READ_BUFFER_BYTES)
            try:
                # A process group of its own: Ctrl-C in the terminal reaches only this process,
                # which ends the engine when the running requests are done.
                process = subprocess.Popen(
                    [*command, "--fd", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                )
            except OSError:
                writer.transport.abort()
                raise
        child = cls(process, reader, writer)
        child.send(frames.encode_frame(frames.Start(config)))
        return child

    def send(self, frame: bytes) -> None:
        """Queue a frame; never waits. A frame to a process that is gone is dropped.

        What queues up here is bounded by the requests the caller lets in.
        """
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def receive(self) -> frames.FromEngine | None:
        """The next message; None when the process is gone or has sent what is no message."""
        try:
            header = await self._reader.readexactly(frames.HEADER_BYTES)
            payload = await self._reader.readexactly(frames.payload_size(header))
            message = frames.decode_from_engine(payload)
        except (asyncio.IncompleteReadError, ConnectionError, frames.FrameError):
            return None
        self.last_frame_at_s = time.monotonic()
        return message

    async def stop(self, grace_s: float) -> None:
        """Close the socket, which ends the process, and kill it after `grace_s`.

        Returns in any case. SIGTERM would not do: the process ignores it, because a supervisor
        such as systemd sends it to every process of a service at once, and the requests that
        still run could not be finished.
        """
        self._writer.transport.abort()
        if not await self.wait(grace_s):
            self._process.kill()
            await self.wait(grace_s)

    async def wait(self, timeout_s: float) -> bool:
        """Whether the process has ended; waits for that up to `timeout_s`."""
        end = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        return self._process.poll() is not None

    def cause_of_death(self) -> str:
        """How the process ended, as the rest of a sentence that starts with "The engine"."""
        code = self._process.poll()
        if code is None:
            return "closed its connection"
        if code < 0:
            hint = " (was the memory used up?)" if code == -signal.SIGKILL else ""
            return f"was ended by signal {-code}{hint}"
        return f"ended with exit status {code} (the log has the cause)"
