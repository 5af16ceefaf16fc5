"""The real HTTP server on a free loopback port, in a thread, in front of a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from fake_engine import FakeEngine, tiny_tokenizer
from waiting import wait_for

from m2serve.server.config import ServerConfig
from m2serve.server.run import DrainingServer, bind, make_server

MODEL = "MiniMaxAI/MiniMax-M2.5"


@dataclass(frozen=True)
class FakeServer:
    engine: FakeEngine
    server: DrainingServer
    port: int
    client: httpx2.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        return self.client.post(path, json=body, headers=headers)

    def chat(self, **fields: Any) -> httpx2.Response:
        return self.post("/v1/chat/completions", chat_body(**fields))

    def complete(self, **fields: Any) -> httpx2.Response:
        return self.post("/v1/completions", {"model": MODEL, "prompt": "The sky", **fields})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def metric(self, line_start: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(line_start))


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}


def sse(response: httpx2.Response) -> list[dict[str, Any] | str]:
    """Data of each event; "[DONE]" as text."""
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@contextlib.contextmanager
def fake_server(engine: FakeEngine | None = None, **options: Any) -> Iterator[FakeServer]:
    options.setdefault("served_model_names", (MODEL, "m2"))
    options.setdefault("port", 0)
    config = ServerConfig(**options)
    engine = engine or FakeEngine()
    listener = bind(config.host, config.port)
    port = listener.getsockname()[1]
    server = make_server(config, engine, tiny_tokenizer())
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    wait_for(lambda: server.started)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield FakeServer(engine, server, port, client)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
