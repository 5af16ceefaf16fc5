"""Serving over HTTP: the same client against ours, vLLM's CPU build and llama-server, BF16.

All three run at the same time, but the peers are stopped (SIGSTOP) while they are not asked, so
that they take no time from the one that is. Every round asks each at all levels of concurrency.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from m2serve.cli.private_server import free_port
from m2serve.client import EndpointError
from scripts.peers.figures import OUTPUT_RATE, TPOT, TTFT, Figures, result_line
from scripts.peers.mid_checkpoint import text_ids
from scripts.peers.processes import Contender, Failed, Program, end, freeze, shown, thaw
from scripts.peers.rounds import Case, Target
from scripts.peers.serve_client import ask_all, at_level, level_figures, random_prompts
from scripts.peers.servers import Server, llama_server, own_server, vllm_server
from scripts.peers.setup import HERE, Setup

PROMPT, OUTPUT = 512, 128
LEVELS = (1, 8, 32)
# Output tokens/s of ours over theirs at least.
OVER_VLLM = {1: 2.0, 8: 1.8, 32: 2.2}
OVER_LLAMA = {1: 1.6, 8: 2.2, 32: 2.8}
_START_DEADLINE_S = 900.0
_WARM_UP_PROMPT, _WARM_UP_OUTPUT = 32, 4


@dataclass
class ServerLoad:
    """A contender: one server under the load of all levels."""

    server: Server
    ids: range
    requests: tuple[int, ...]
    log: Path
    url: str = field(default="", init=False)
    _process: subprocess.Popen[str] | None = field(default=None, init=False)
    _rounds: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def argv(self) -> tuple[str, ...]:
        return self.server.argv

    @property
    def command(self) -> str:
        return shown(self.server.argv, self.server.env)

    def open(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = self.server.start(port, self.log)
        self._wait_until_it_generates()
        self._warm_up(max(LEVELS))
        self._freeze()

    def measure(self) -> Figures:
        process = self._running()
        thaw(process.pid)
        figures: Figures = {}
        try:
            self._warm_up(1)  # who was stopped for minutes pays for waking up here
            for concurrency, count in zip(LEVELS, self.requests, strict=True):
                seed = f"{self._rounds} {concurrency}"
                prompts = random_prompts(self.ids, count, PROMPT, seed)
                figures |= self._ask(prompts, OUTPUT, concurrency)
        finally:
            self._freeze()
        self._rounds += 1
        return figures

    def close(self) -> None:
        if self._process is not None:
            end(self._process)

    def _ask(self, prompts: list[list[int]], num_tokens: int, concurrency: int) -> Figures:
        try:
            asked = ask_all(self.server, self.url, prompts, num_tokens, concurrency)
            return level_figures(asyncio.run(asked), concurrency)
        except EndpointError as error:
            raise Failed(str(error)) from error

    def _warm_up(self, concurrency: int) -> None:
        prompts = random_prompts(self.ids, concurrency, _WARM_UP_PROMPT, f"warm {self._rounds}")
        self._ask(prompts, _WARM_UP_OUTPUT, concurrency)

    def _wait_until_it_generates(self) -> None:
        """Being healthy is not enough: an engine may fail at its first request."""
        give_up = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < give_up:
            if self._running().poll() is not None:
                raise Failed(f"ended at its start, see {self.log}")
            try:
                httpx2.get(f"{self.url}/health", timeout=5).raise_for_status()
                self._ask(random_prompts(self.ids, 1, _WARM_UP_PROMPT, "first"), 1, 1)
                return
            except (httpx2.HTTPError, Failed):
                time.sleep(0.5)
        raise Failed(f"not ready after {_START_DEADLINE_S:g} s, see {self.log}")

    def _freeze(self) -> None:
        if self.server.may_be_frozen:
            freeze(self._running().pid)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise Failed("was not started")
        return self._process


def serve(setup: Setup) -> list[Case]:
    """512 tokens in, 128 out."""
    model = setup.models / "mid"
    ours = own_server(setup.m2, model, setup.threads)
    vllm = vllm_server(setup.vllm_python, model)
    llama = llama_server(setup.llama_bin, setup.models / "mid-bf16.gguf", setup.threads)
    ids = text_ids(model)
    loads: list[Contender] = [
        ServerLoad(one, ids, setup.requests, setup.logs / f"{one.name}.log")
        for one in (ours, vllm, llama)
    ]
    memory = (str(setup.python), str(HERE / "bandwidth.py"), str(setup.threads))
    contenders = (Program("memory", memory, result_line), *loads)
    targets = []
    for level in LEVELS:
        targets.append(_rate(level, vllm.name, OVER_VLLM[level]))
        targets.append(_rate(level, llama.name, OVER_LLAMA[level]))
        for peer in (vllm.name, llama.name):
            targets.append(Target(at_level(TTFT, level), ("ours",), (peer,), 1.0, "at most"))
    also = tuple(at_level(TPOT, level) for level in LEVELS)
    return [Case("serve", "bf16", contenders, tuple(targets), also)]


def _rate(level: int, peer: str, limit: float) -> Target:
    return Target(at_level(OUTPUT_RATE, level), ("ours",), (peer,), limit)
