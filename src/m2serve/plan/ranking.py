"""What makes one configuration better than another, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from m2serve.plan.configuration import Configuration
from m2serve.plan.memory import MemoryPlan
from m2serve.plan.settings_ascend import is_long
from m2serve.records import Speed, Workload

# Figures closer than this are equal: the forecast is not that good.
_STEP = 1.08
# Another's quantisation must be a tenth better to be taken before the official release, and more
# where its weights are unpacked in the kernel: the forecast counts bytes alone.
_THIRD_PARTY, _WEIGHT_ONLY = 1.1, 1.15


@dataclass(frozen=True)
class Candidate:
    """A configuration that fits. `memory` is one replica's. `holds_workload`: the KV caches hold
    all users at once.
    """

    configuration: Configuration
    workload: Workload
    memory: MemoryPlan
    speed: Speed
    holds_workload: bool

    @property
    def kv_cache_tokens(self) -> int:
        """Of all replicas."""
        return self.memory.kv_cache_tokens * self.configuration.num_replicas

    @property
    def output_per_device(self) -> float:
        count = len(self.configuration.machine.devices)
        return self.speed.output_tokens_per_s.value / count


def request_tokens(workload: Workload) -> int:
    return workload.input_len + workload.output_len


def least_tokens(workload: Workload) -> int:
    """What the KV cache must hold at the least: the context asked for, or one request."""
    return workload.max_model_len or request_tokens(workload)


def workload_tokens(workload: Workload, num_replicas: int = 1) -> int:
    """KV cache that all users need at once; what a prefix cache shares is held once a replica."""
    shared = round(workload.input_len * workload.prefix_hit)
    users = -(-workload.concurrency // num_replicas)
    return num_replicas * (shared + users * (request_tokens(workload) - shared))


def comparison(best: Candidate, other: Candidate) -> str:
    """Why `other` lost to `best`, in one sentence."""
    if other.holds_workload != best.holds_workload:
        return (
            f"its KV cache of {other.kv_cache_tokens:,} tokens does not hold the workload's "
            f"{workload_tokens(other.workload, other.configuration.num_replicas):,}"
        )
    if _is_pruned(other) != _is_pruned(best):
        return "experts were pruned from it, which costs quality; taken where nothing else fits"
    if _meets_slos(other) != _meets_slos(best):
        return f"misses the SLO: {_figures(other)}"
    if other.configuration.kv_cache_dtype != best.configuration.kv_cache_dtype:
        return f"an FP8 KV cache is not needed: {_figures(other)} against {_figures(best)}"
    figures = f"{_figures(other)} against {_figures(best)}"
    ratio = _value(other) / _value(best)
    if ratio > _STEP:
        return figures
    if ratio < 1 / _STEP:
        return f"not enough better for another's quantisation: {figures}"
    return f"no better by the forecast, {figures}; the plan's is the better known or simpler one"


def ranked(found: Sequence[Candidate]) -> list[Candidate]:
    """The best first: what must hold, then the objective, in steps of what the forecast can tell
    apart counted from the best; then the simpler cut, or the one with more KV cache where many
    users count. Ties stay in the order tried.
    """
    duties = [_duties(candidate) for candidate in found]
    best: dict[tuple[bool, ...], float] = {}
    for duty, candidate in zip(duties, found, strict=True):
        best[duty] = min(best.get(duty, math.inf), _handicapped(candidate))
    keys = [
        (duty, int(math.log(_handicapped(c) / best[duty]) / math.log(_STEP)), *_tie_break(c))
        for duty, c in zip(duties, found, strict=True)
    ]
    order = sorted(range(len(found)), key=lambda index: keys[index])
    return [found[index] for index in order]


def _duties(candidate: Candidate) -> tuple[bool, ...]:
    return (
        not _meets_slos(candidate),
        not candidate.holds_workload,
        _is_pruned(candidate),
        candidate.configuration.kv_cache_dtype != "auto",
    )


def _tie_break(candidate: Candidate) -> tuple[object, ...]:
    c, workload = candidate.configuration, candidate.workload
    cut, is_ascend = c.parallelism, c.engine.name == "vllm-ascend"
    return (
        is_ascend and is_long(workload.input_len) and cut.prefill_context == 1,
        cut.pipeline,
        0 if workload.objective == "latency" else -candidate.kv_cache_tokens,
        c.num_replicas,
        (cut.prefill_context, cut.data, cut.expert_parallel),
        candidate.speed.ttft_ms.value,
    )


def _handicapped(candidate: Candidate) -> float:
    return _value(candidate) * _handicap(candidate.configuration)


def _handicap(c: Configuration) -> float:
    if c.variant.name.startswith("MiniMaxAI/"):
        return 1.0
    kernels = [k for k in c.kernels("moe", c.held.experts_format, c.arch) if not k.is_broken]
    is_weight_only = all(kernel.is_weight_only for kernel in kernels)
    return _THIRD_PARTY * (_WEIGHT_ONLY if is_weight_only else 1.0)


def _value(candidate: Candidate) -> float:
    """What the objective wants small."""
    match candidate.workload.objective:
        case "latency":
            return candidate.speed.tpot_ms.value
        case "throughput":
            return 1 / candidate.speed.output_tokens_per_s.value
    return 1 / candidate.output_per_device


def _meets_slos(candidate: Candidate) -> bool:
    speed, workload = candidate.speed, candidate.workload
    limits = ((workload.slo_ttft_ms, speed.ttft_ms), (workload.slo_tpot_ms, speed.tpot_ms))
    return all(limit is None or estimate.value <= limit for limit, estimate in limits)


def _is_pruned(candidate: Candidate) -> bool:
    return candidate.configuration.variant.num_experts < 256


def _figures(candidate: Candidate) -> str:
    speed = candidate.speed
    return (
        f"TPOT {speed.tpot_ms.value:.1f} ms, TTFT {speed.ttft_ms.value:.0f} ms, "
        f"{speed.output_tokens_per_s.value:,.0f} tokens/s"
    )
