"""Try every engine, checkpoint, cut and KV dtype; say why each was dropped; rank what is left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from m2serve.plan.candidates import (
    cuts,
    draft_for,
    good_version,
    kv_cache_dtypes,
    machines,
    memory_profiles,
)
from m2serve.plan.configuration import Configuration
from m2serve.plan.memory import MemoryPlan, plan_memory
from m2serve.plan.placement import unequal_stages, with_offload
from m2serve.plan.predict import predict
from m2serve.plan.rules import first_objection
from m2serve.plan.settings_ascend import is_long
from m2serve.records import Rejection, Speed, Workload
from m2serve.spec.engines import Engine
from m2serve.spec.hardware import Hardware
from m2serve.spec.variants import Variant

MAX_RUNNERS_UP = 5
_MIN_SEQS = 16
_LEN_STEP = 1024
# Figures closer than this are equal: the forecast is not that good.
_STEP = 1.08
# Another's quantisation must be a tenth better to be taken before the official release, and more
# where its weights are unpacked in the kernel: the forecast counts bytes alone.
_THIRD_PARTY, _WEIGHT_ONLY = 1.1, 1.15


@dataclass(frozen=True)
class Candidate:
    """A configuration that fits. `holds_workload`: the KV cache holds all its users at once."""

    configuration: Configuration
    workload: Workload
    memory: MemoryPlan
    speed: Speed
    holds_workload: bool

    @property
    def output_per_device(self) -> float:
        count = len(self.configuration.devices)
        return self.speed.output_tokens_per_s.value / count


@dataclass(frozen=True)
class Search:
    """`found` best first; `rejected` says why the others were dropped."""

    found: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]


def search(
    engines: Sequence[tuple[Engine, str]],
    variants: Sequence[Variant],
    hardware: Hardware,
    workload: Workload,
) -> Search:
    """`engines` with the version each is planned for, "" for the oldest good one."""
    found: list[Candidate] = []
    rejected: list[Rejection] = []
    for machine in machines(hardware, workload.objective):
        for c in _configurations(engines, variants, machine, workload):
            outcome = _try(c, workload)
            if isinstance(outcome, Candidate):
                found.append(outcome)
            else:
                rejected.append(outcome)
    if not found:
        for c in _configurations(engines, variants, hardware, workload):
            candidate = _try_offload(c, workload)
            if candidate is not None:
                found.append(candidate)
    return Search(tuple(ranked(found)), tuple(_merge(rejected)))


def request_tokens(workload: Workload) -> int:
    return workload.input_len + workload.output_len


def workload_tokens(workload: Workload) -> int:
    """KV cache that all users need at once; what a prefix cache shares is held once."""
    shared = round(workload.input_len * workload.prefix_hit)
    return shared + workload.concurrency * (request_tokens(workload) - shared)


def comparison(best: Candidate, other: Candidate) -> str:
    """Why `other` lost to `best`, in one sentence."""
    if other.holds_workload != best.holds_workload:
        return (
            f"its KV cache of {other.memory.kv_cache_tokens:,} tokens does not hold the workload's "
            f"{workload_tokens(other.workload):,}"
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


def _configurations(
    engines: Sequence[tuple[Engine, str]],
    variants: Sequence[Variant],
    hardware: Hardware,
    workload: Workload,
) -> Iterator[Configuration]:
    for engine, wanted in engines:
        for variant in variants:
            version = wanted or good_version(engine, variant, hardware)
            for dtype in kv_cache_dtypes(engine.name, variant):
                for cut in cuts(hardware, engine.name, workload.input_len):
                    yield Configuration(
                        engine,
                        version,
                        variant,
                        hardware,
                        cut,
                        workload.max_model_len or variant.max_model_len,
                        kv_cache_dtype=dtype,
                        max_num_seqs=max_num_seqs(workload.concurrency, cut.data),
                        draft=draft_for(engine.name, variant, dtype),
                    )


def max_num_seqs(concurrency: int, data: int) -> int:
    """The power of two that holds the users of one data-parallel rank, 16 at least."""
    each = -(-concurrency // data)
    return max(_MIN_SEQS, 1 << (each - 1).bit_length())


def _try(c: Configuration, workload: Workload) -> Candidate | Rejection:
    objection = first_objection(c)
    if objection is not None:
        return Rejection(str(c), objection)
    fits = []
    for trial in _profiles(c, workload):
        candidate = _sized(trial, workload)
        if candidate is None:
            continue
        if candidate.holds_workload:
            return candidate
        fits.append(candidate)
    if fits:
        return max(fits, key=lambda candidate: candidate.memory.kv_cache_tokens)
    return Rejection(str(c), _why_it_does_not_fit(c, workload))


def _try_offload(c: Configuration, workload: Workload) -> Candidate | None:
    """vLLM alone keeps weights in host memory for this family."""
    if c.engine.name != "vllm" or c.arch == "cpu" or first_objection(c) is not None:
        return None
    least = workload.max_model_len or request_tokens(workload)
    tight = list(_profiles(c, workload))[-1]
    placed = with_offload(tight, least)
    return None if placed is None else _sized(placed, workload)


def _profiles(c: Configuration, workload: Workload) -> Iterator[Configuration]:
    for share, tokens in memory_profiles(c.engine, c.version, c.arch, workload):
        yield c.replace(gpu_memory_utilization=share, max_num_batched_tokens=tokens)


def _sized(c: Configuration, workload: Workload) -> Candidate | None:
    """With the context cut to what one rank's KV cache holds for sure, where none was asked for."""
    least = workload.max_model_len or request_tokens(workload)
    if not c.hardware.is_uniform and not c.parallelism.pipeline_layers:
        placed = unequal_stages(c, least)
        if placed is None:
            return None
        c = placed
    memory = plan_memory(c)
    if memory.shortfall_bytes or memory.replica_tokens < least:
        return None
    if memory.safe_tokens < c.max_model_len and not workload.max_model_len:
        stepped = memory.safe_tokens // _LEN_STEP * _LEN_STEP
        c = c.replace(max_model_len=max(stepped, least))
    speed = predict(c, memory, workload)
    return Candidate(
        c, workload, memory, speed, memory.kv_cache_tokens >= workload_tokens(workload)
    )


def _why_it_does_not_fit(c: Configuration, workload: Workload) -> str:
    tight = list(_profiles(c, workload))[-1]
    if not c.hardware.is_uniform:
        return "the layers do not fit the cards, however they are shared out"
    memory = plan_memory(tight)
    rank = max(memory.ranks, key=lambda r: r.used_bytes - r.budget_bytes)
    if memory.shortfall_bytes:
        return (
            f"{_gib(rank.term('weights'))} GiB of weights and {_gib(rank.term('overhead'))} GiB "
            f"beside them are more than {_gib(rank.budget_bytes)} GiB of a {rank.device}"
        )
    wanted = workload.max_model_len or request_tokens(workload)
    return (
        f"the KV cache holds {memory.replica_tokens:,} tokens after {_gib(rank.term('weights'))} "
        f"GiB of weights, and one request may need {wanted:,}"
    )


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
        0 if workload.objective == "latency" else -candidate.memory.kv_cache_tokens,
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


def _merge(rejected: Iterable[Rejection]) -> Iterator[Rejection]:
    """One entry for each reason of an engine, with the checkpoints and cuts it was said of; what
    was said of a single cut first, what of whole engines last.
    """
    merged: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for rejection in rejected:
        engine, variant, *rest = rejection.configuration.split(", ")
        merged.setdefault((engine, rejection.reason), []).append((variant, ", ".join(rest)))
    for (engine, reason), said_of in sorted(merged.items(), key=lambda entry: len(entry[1])):
        variants = _some([variant for variant, _ in said_of])
        yield Rejection(f"{engine}, {variants}, {_some([cut for _, cut in said_of])}", reason)


def _some(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - 2} more" if len(shown) > 2 else ""
    return "; ".join(shown[:2]) + more


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"
