"""A line every ten seconds while there is work, in the words of vLLM's."""

from __future__ import annotations

import asyncio
import logging
import time

from m2serve.engine.client import EngineClient
from m2serve.engine.request import EngineStats

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0


async def log_throughput(engine: EngineClient, interval_s: float = INTERVAL_S) -> None:
    """Runs until cancelled."""
    last, last_s = engine.stats(), time.perf_counter()
    while True:
        await asyncio.sleep(interval_s)
        now, now_s = engine.stats(), time.perf_counter()
        line = throughput_line(last, now, now_s - last_s)
        if line:
            logger.info(line)
        last, last_s = now, now_s


def throughput_line(last: EngineStats, now: EngineStats, interval_s: float) -> str:
    """ "" when nothing ran; counters that went back belong to an engine that was restarted."""
    if now.generation_tokens < last.generation_tokens or now.prompt_tokens < last.prompt_tokens:
        last = EngineStats()
    prompt_tokens = now.prompt_tokens - last.prompt_tokens
    generation_tokens = now.generation_tokens - last.generation_tokens
    if not (prompt_tokens or generation_tokens or now.num_running_reqs or now.num_waiting_reqs):
        return ""
    queries = now.prefix_cache_queries - last.prefix_cache_queries
    hits = now.prefix_cache_hits - last.prefix_cache_hits
    busy_s, native_s = now.busy_s - last.busy_s, now.native_s - last.native_s
    native = f", Native code: {native_s / busy_s:.1%}" if native_s else ""
    return (
        f"Avg prompt throughput: {prompt_tokens / interval_s:.1f} tokens/s, "
        f"Avg generation throughput: {generation_tokens / interval_s:.1f} tokens/s, "
        f"Running: {now.num_running_reqs} reqs, Waiting: {now.num_waiting_reqs} reqs, "
        f"Preemptions: {now.num_preemptions - last.num_preemptions}, "
        f"KV cache usage: {now.kv_cache_usage:.1%}, "
        f"Prefix cache hit rate: {hits / queries if queries else 0:.1%}{native}"
    )
