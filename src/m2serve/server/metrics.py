"""What /metrics shows, under vLLM's names, so that its dashboards work unchanged.

What vLLM has no name for begins with `m2:`. Only what is really known is exported. Every label
value comes from a fixed set. Each application has a registry of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from m2serve.engine.request import EngineStats

# fmt: off
_TTFT_S = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
           160, 640, 2560)
_ITL_S = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY_S = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920,
              7680)
_HTTP_S = (.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# fmt: on
_N = (1, 2, 5, 10, 20)
_TOKENS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))[:-2]

FinishedReason = Literal["stop", "length", "abort", "error"]
_LABELS = ("model_name", "engine")
_ENGINE = "0"


class Metrics:
    """`record_*` and `SequenceTimer` write, `text` renders."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._labels = (model_name, _ENGINE)
        self._registry.register(_EngineCollector(stats, self._labels))
        self.ttft = self._histogram("time_to_first_token_seconds", _TTFT_S)
        self.itl = self._histogram("inter_token_latency_seconds", _ITL_S)
        self.tpot = self._histogram("request_time_per_output_token_seconds", _ITL_S)
        self.e2e = self._histogram("e2e_request_latency_seconds", _LATENCY_S)
        self.prompt_tokens = self._histogram("request_prompt_tokens", _TOKENS)
        self.generation_tokens = self._histogram("request_generation_tokens", _TOKENS)
        self.max_tokens = self._histogram("request_params_max_tokens", _TOKENS)
        self.params_n = self._histogram("request_params_n", _N)
        self.cached_tokens = self._counter("prompt_tokens_cached").labels(*self._labels)
        self._success = self._counter("request_success", "finished_reason")
        self._rejections = self._counter("admission_rejections", "reason")
        self._http_requests = Counter(
            "http_requests", "Requests.", ("handler", "method", "status"), registry=self._registry
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds",
            "Time until the response was complete.",
            ("handler", "method"),
            buckets=_HTTP_S,
            registry=self._registry,
        )
        for finished_reason in ("stop", "length", "abort", "error"):
            self._success.labels(*self._labels, finished_reason)
        for reason in ("queued_reqs", "queued_tokens"):
            self._rejections.labels(*self._labels, reason)

    def record_success(self, finished_reason: FinishedReason) -> None:
        self._success.labels(*self._labels, finished_reason).inc()

    def record_rejection(self, reason: str) -> None:
        self._rejections.labels(*self._labels, reason).inc()

    def record_http(self, handler: str, method: str, status: str, duration_s: float) -> None:
        """All three labels come from fixed sets, see `http_metrics.py`."""
        self._http_requests.labels(handler, method, status).inc()
        self._http_duration.labels(handler, method).observe(duration_s)

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", _help(name), _LABELS, buckets=buckets, registry=self._registry
        )
        return histogram.labels(*self._labels)

    def _counter(self, name: str, *more_labels: str) -> Counter:
        return Counter(
            f"vllm:{name}", _help(name), (*_LABELS, *more_labels), registry=self._registry
        )


class SequenceTimer:
    """Times one sequence as the server sees it, from `started` to its end."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int, max_tokens: int) -> None:
        self._metrics: Metrics | None = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._started_s = self._newest_s = time.perf_counter()
        self._first_s = 0.0

    def output(self, num_tokens: int) -> None:
        """Tokens have come from the engine."""
        if self._metrics is None or not num_tokens:
            return
        now_s = time.perf_counter()
        if self._num_tokens == 0:
            self._first_s = now_s
            self._metrics.ttft.observe(now_s - self._started_s)
        else:
            self._metrics.itl.observe(now_s - self._newest_s)
        self._newest_s = now_s
        self._num_tokens += num_tokens

    def finish(self, reason: FinishedReason, num_cached_tokens: int = 0) -> None:
        """Only the first call counts."""
        if self._metrics is None:
            return
        metrics, self._metrics = self._metrics, None
        metrics.record_success(reason)
        metrics.e2e.observe(time.perf_counter() - self._started_s)
        metrics.prompt_tokens.observe(self._num_prompt_tokens)
        metrics.generation_tokens.observe(self._num_tokens)
        metrics.max_tokens.observe(self._max_tokens)
        metrics.cached_tokens.inc(num_cached_tokens)
        if self._num_tokens > 1:
            metrics.tpot.observe((self._newest_s - self._first_s) / (self._num_tokens - 1))


class _EngineCollector(Collector):
    """The engine's own counters, read when somebody asks."""

    def __init__(self, stats: Callable[[], EngineStats], labels: tuple[str, str]) -> None:
        self._stats = stats
        self._values = labels

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = {
            "num_requests_running": stats.num_running_reqs,
            "num_requests_waiting": stats.num_waiting_reqs,
            "kv_cache_usage_perc": stats.kv_cache_usage,
        }
        counters = {
            "prompt_tokens": stats.prompt_tokens,
            "generation_tokens": stats.generation_tokens,
            "prefix_cache_queries": stats.prefix_cache_queries,
            "prefix_cache_hits": stats.prefix_cache_hits,
            "num_preemptions": stats.num_preemptions,
        }
        for name, value in gauges.items():
            yield self._gauge(f"vllm:{name}", value)
        for name, value in counters.items():
            yield self._counter(f"vllm:{name}", value)
        if stats.native_s:
            yield self._counter("m2:engine_busy_seconds", stats.busy_s)
            yield self._counter("m2:engine_native_seconds", stats.native_s)
            yield self._gauge("m2:native_busy_ratio", stats.native_busy_share)

    def _gauge(self, name: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, _help(name.partition(":")[2]), labels=_LABELS)
        family.add_metric(self._values, value)
        return family

    def _counter(self, name: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, _help(name.partition(":")[2]), labels=_LABELS)
        family.add_metric(self._values, value)
        return family


_HELP = {
    "kv_cache_usage_perc": "Part of the KV cache in use, from 0 to 1.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "request_success": "Finished sequences by reason.",
    "admission_rejections": "Requests refused because the queue was full.",
    "engine_busy_seconds": "Time in which the engine had requests to compute.",
    "engine_native_seconds": "The part of m2:engine_busy_seconds spent in the native CPU library.",
    "native_busy_ratio": "m2:engine_native_seconds over m2:engine_busy_seconds since the start.",
}


def _help(name: str) -> str:
    return _HELP.get(name, name.replace("_", " ").capitalize() + ".")
