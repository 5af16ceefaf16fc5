"""A server for one conversation: started for `m2 chat`, ended with it."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from m2serve.client import Endpoint, EndpointError
from m2serve.errors import ResourceError
from m2serve.launch.process import EngineProcess

_POLL_S = 0.1
_STOP_GRACE_S = 5.0
_NUM_SHOWN_LINES = 5


@asynccontextmanager
async def private_server(arguments: Sequence[str]) -> AsyncIterator[str]:
    """Run `m2 serve ARGUMENTS` on a free port of this machine; yields its URL once it is ready.

    Raises ResourceError with the end of its log when it ends before that.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "m2serve.cli.main", "serve", *arguments, "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="m2-chat-") as folder:
        log_path = Path(folder) / "server.log"
        server = EngineProcess(command, {}, log_path, stop_grace_s=_STOP_GRACE_S)
        server.start()
        try:
            await _ready(server, url)
            yield url
        finally:
            await server.stop()


async def _ready(server: EngineProcess, url: str) -> None:
    async with Endpoint(url) as endpoint:
        while server.poll() is None:
            try:
                await endpoint.get("/ready")
                return
            except EndpointError:
                await asyncio.sleep(_POLL_S)
    lines = server.tail().strip().splitlines()[-_NUM_SHOWN_LINES:]
    raise ResourceError("The server did not start: " + " ".join(line.strip() for line in lines))


async def answers(url: str, api_key: str | None = None) -> bool:
    """Whether an OpenAI-compatible server is there; one that wants another key is one, too."""
    async with Endpoint(url, api_key=api_key) as endpoint:
        try:
            await endpoint.get("/v1/models")
        except EndpointError as error:
            return error.status in (401, 403)
    return True


def free_port() -> int:
    """A TCP port of this machine nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
