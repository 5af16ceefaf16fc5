"""A closed loop of streaming requests against one server, every chunk timed.

One connection a request, opened anew for every server alike: llama-server closes its own after an
answer. Connecting is inside the time to the first token.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import fmean

from m2serve.client import Endpoint, EndpointError
from scripts.peers.figures import OUTPUT_RATE, TPOT, TTFT, Figures
from scripts.peers.servers import Server


@dataclass(frozen=True)
class Answer:
    """Times of time.perf_counter(): sent, first token, last token."""

    start_s: float
    first_s: float
    last_s: float
    num_tokens: int


def random_prompts(ids: Sequence[int], count: int, length: int, seed: str) -> list[list[int]]:
    """The same seed gives the same prompts, so that every server gets the same ones."""
    chooser = random.Random(seed)
    return [chooser.choices(ids, k=length) for _ in range(count)]


async def ask_all(
    server: Server, url: str, prompts: list[list[int]], num_tokens: int, concurrency: int
) -> list[Answer]:
    """All prompts, `concurrency` at a time; raises EndpointError when one fails."""
    waiting = list(enumerate(prompts))[::-1]
    answers: list[Answer] = []

    async def worker(endpoints: list[Endpoint]) -> None:
        while waiting:
            index, prompt = waiting.pop()
            answers.append(await ask(server, endpoints[index], prompt, num_tokens))

    async with AsyncExitStack() as stack:
        # Made before the first request, as that takes time of its own.
        endpoints = [await stack.enter_async_context(Endpoint(url)) for _ in prompts]
        await asyncio.gather(*(worker(endpoints) for _ in range(concurrency)))
    return answers


async def ask(server: Server, endpoint: Endpoint, prompt: list[int], num_tokens: int) -> Answer:
    start_s = time.perf_counter()
    times_s: list[float] = []
    counted = None
    async for chunk in endpoint.stream(server.path, server.body(prompt, num_tokens)):
        if server.has_token(chunk):
            times_s.append(chunk.time_s)
        counted = server.num_tokens(chunk) or counted
    if counted != num_tokens or not times_s:
        raise EndpointError(f"{server.name} sent {counted} tokens instead of {num_tokens}")
    return Answer(start_s, times_s[0], times_s[-1], counted)


def level_figures(answers: list[Answer], concurrency: int) -> Figures:
    """Rates over the time from the first request to the last token; times are means."""
    elapsed_s = max(a.last_s for a in answers) - min(a.start_s for a in answers)
    steps = [(a.last_s - a.first_s) / (a.num_tokens - 1) for a in answers if a.num_tokens > 1]
    figures = {
        OUTPUT_RATE: sum(answer.num_tokens for answer in answers) / elapsed_s,
        TTFT: fmean(answer.first_s - answer.start_s for answer in answers) * 1e3,
        TPOT: fmean(steps) * 1e3 if steps else 0.0,
    }
    return {at_level(name, concurrency): value for name, value in figures.items()}


def at_level(metric: str, concurrency: int) -> str:
    return f"{metric} at {concurrency}"
