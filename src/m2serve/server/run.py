"""Serve until a signal says to stop, then let running answers finish.

First SIGTERM or SIGINT: /ready turns false, new requests get 503, running ones go on for up to
`shutdown_timeout_s`, then end with an error. Second: they end now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.client import EngineClient
from m2serve.engine.request import EngineInfo
from m2serve.errors import ResourceError
from m2serve.server.app import create_app
from m2serve.server.config import ServerConfig
from m2serve.server.http_protocol import HttpLimits, guarded_protocol
from m2serve.server.running import RunningRequests
from m2serve.server.throughput_log import log_throughput

logger = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

OnReady = Callable[[EngineInfo], None]


def run_server(
    config: ServerConfig,
    engine: EngineClient,
    tokenizer: Tokenizer,
    on_ready: OnReady | None = None,
) -> None:
    """Bind, start the engine, serve, stop; returns after a clean shutdown.

    Raises ResourceError when the port cannot be had, and the engine's own M2Error when its first
    start fails. `on_ready` is called once, when the first answer can be given.
    """
    listener = bind(config.host, config.port)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(config, engine, tokenizer, listener, on_ready))


async def serve(
    config: ServerConfig,
    engine: EngineClient,
    tokenizer: Tokenizer,
    listener: socket.socket,
    on_ready: OnReady | None = None,
) -> None:
    """`run_server` on a socket that is bound, inside a running loop."""
    server = make_server(config, engine, tokenizer)
    log = asyncio.create_task(log_throughput(engine))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(_start(server, engine, on_ready))
    try:
        await asyncio.wait({starting, serving}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and starting.exception() is not None:
            server.should_exit = True
        await serving
        if starting.done():
            starting.result()
    finally:
        log.cancel()
        starting.cancel()
        await asyncio.gather(log, starting, return_exceptions=True)
        await engine.close()


def make_server(config: ServerConfig, engine: EngineClient, tokenizer: Tokenizer) -> DrainingServer:
    """The HTTP side alone; starting and closing the engine is left to the caller."""
    running = RunningRequests()
    app = create_app(config, engine, tokenizer, running)
    return DrainingServer(_uvicorn_config(app, config), running, config.shutdown_timeout_s)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises ResourceError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # a host with an empty or long part is no name
        why = getattr(error, "strerror", None) or error
        raise ResourceError(
            f"port {port} on {host} cannot be used: {why}; choose another with --port or --host"
        ) from error
    listener.set_inheritable(False)
    return listener


class DrainingServer(uvicorn.Server):
    """uvicorn that keeps answering while it drains, and does not die of the signal it was sent."""

    def __init__(
        self, config: uvicorn.Config, running: RunningRequests, shutdown_timeout_s: float
    ) -> None:
        super().__init__(config)
        self._running = running
        self._shutdown_timeout_s = shutdown_timeout_s
        self._deadline_s: float | None = None
        self._num_signals = 0
        self.listening = asyncio.Event()

    @property
    def num_running(self) -> int:
        return self._running.num_running

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._num_signals += 1

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._num_signals and not self._running.draining:
            self._running.draining = True
            self._deadline_s = time.monotonic() + self._shutdown_timeout_s
            logger.info("Shutting down; %d requests are running", self._running.num_running)
        if self._deadline_s is not None:
            late = time.monotonic() >= self._deadline_s or self._num_signals > 1
            if late or not self._running.num_running:
                self._running.end_all()
                self.should_exit = True
        return await super().on_tick(counter)


async def _start(server: DrainingServer, engine: EngineClient, on_ready: OnReady | None) -> None:
    """Listen first: /ready then shows the progress of loading, and signals are ours."""
    await server.listening.wait()
    await engine.start()
    info = await engine.wait_ready()
    if on_ready is not None:
        on_ready(info)


def _uvicorn_config(app: object, config: ServerConfig) -> uvicorn.Config:
    limits = HttpLimits(config.max_header_bytes, config.header_timeout_s, config.max_connections)
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=guarded_protocol(limits),
        ws="none",
        lifespan="off",
        proxy_headers=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=int(config.keep_alive_timeout_s),
        timeout_graceful_shutdown=_FLUSH_TIMEOUT_S,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
