"""Try every engine, checkpoint, cut and KV dtype; say why each was dropped; rank what is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from m2serve.plan.candidates import (
    cuts,
    draft_for,
    good_version,
    kv_cache_dtypes,
    machines,
    memory_profiles,
    replica_shares,
)
from m2serve.plan.configuration import Configuration
from m2serve.plan.measured import measured_speed
from m2serve.plan.memory import plan_memory
from m2serve.plan.placement import unequal_stages, with_offload
from m2serve.plan.ranking import Candidate, least_tokens, ranked, workload_tokens
from m2serve.plan.rules import first_objection
from m2serve.plan.run_records import Run
from m2serve.records import Parallelism, Rejection, Workload
from m2serve.spec.engines import Engine
from m2serve.spec.hardware import Hardware
from m2serve.spec.units import GIB
from m2serve.spec.variants import Variant

MAX_RUNNERS_UP = 5
_MIN_SEQS = 16
_LEN_STEP = 1024


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
    runs: Sequence[Run] = (),
    *,
    allow_replicas: bool = True,
) -> Search:
    """`engines` with the version each is planned for, "" for the oldest good one. `runs` were
    measured; they replace or rescale the forecast of what they are of.
    """
    found: list[Candidate] = []
    rejected: list[Rejection] = []
    for machine in machines(hardware, workload.objective):
        tried = _configurations(engines, variants, machine, workload)
        if allow_replicas:
            tried = chain(tried, _replicas(engines, variants, machine, workload))
        for c in tried:
            outcome = _try(c, workload, runs)
            if isinstance(outcome, Candidate):
                found.append(outcome)
            else:
                rejected.append(outcome)
    if not found:
        for c in _configurations(engines, variants, hardware, workload):
            candidate = _try_offload(c, workload, runs)
            if candidate is not None:
                found.append(candidate)
    return Search(tuple(ranked(found)), tuple(_merge(rejected)))


def _configurations(
    engines: Sequence[tuple[Engine, str]],
    variants: Sequence[Variant],
    hardware: Hardware,
    workload: Workload,
    num_replicas: int = 1,
) -> Iterator[Configuration]:
    users = -(-workload.concurrency // num_replicas)
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
                        max_num_seqs=max_num_seqs(users, cut.data),
                        draft=draft_for(engine.name, variant, dtype),
                        num_replicas=num_replicas,
                    )


def _replicas(
    engines: Sequence[tuple[Engine, str]],
    variants: Sequence[Variant],
    machine: Hardware,
    workload: Workload,
) -> Iterator[Configuration]:
    """Independent servers on equal shares of the machine, where many users count or the model
    cannot be cut over all its devices. Within one, ranks are of tensor parallelism: data-parallel
    ones would be more servers.
    """
    for share, count in replica_shares(machine):
        if count > workload.concurrency:
            continue
        for c in _configurations(engines, variants, share, workload, count):
            is_tensor = c.parallelism.tensor * c.parallelism.prefill_context == len(c.devices)
            if is_tensor and (workload.objective != "latency" or not _cuts_whole(c)):
                yield c


def _cuts_whole(c: Configuration) -> bool:
    """Whether tensor parallelism over the whole machine is valid."""
    is_expert = c.engine.name == "vllm-ascend"  # which knows no other cut of this model
    cut = Parallelism(len(c.machine.devices), expert_parallel=is_expert)
    return first_objection(c.replace(hardware=c.machine, num_replicas=1, parallelism=cut)) is None


def max_num_seqs(concurrency: int, data: int) -> int:
    """The power of two that holds the users of one data-parallel rank, 16 at least."""
    each = -(-concurrency // data)
    return max(_MIN_SEQS, 1 << (each - 1).bit_length())


def _try(c: Configuration, workload: Workload, runs: Sequence[Run]) -> Candidate | Rejection:
    objection = first_objection(c)
    if objection is not None:
        return Rejection(str(c), objection)
    least = least_tokens(workload)
    fits = []
    for trial in _profiles(c, workload):
        candidate = _sized(trial, workload, runs)
        if candidate is None:
            continue
        if candidate.holds_workload and candidate.memory.safe_tokens >= least:
            return candidate
        fits.append(candidate)
    if fits:
        return max(
            fits,
            key=lambda candidate: (
                candidate.holds_workload,
                candidate.memory.safe_tokens >= least,
                candidate.memory.kv_cache_tokens,
            ),
        )
    return Rejection(str(c), _why_it_does_not_fit(c, workload))


def _try_offload(c: Configuration, workload: Workload, runs: Sequence[Run]) -> Candidate | None:
    """vLLM alone keeps weights in host memory for this family."""
    if c.engine.name != "vllm" or c.arch == "cpu" or first_objection(c) is not None:
        return None
    least = least_tokens(workload)
    tight = list(_profiles(c, workload))[-1]
    placed = with_offload(tight, least)
    return None if placed is None else _sized(placed, workload, runs)


def _profiles(c: Configuration, workload: Workload) -> Iterator[Configuration]:
    for share, tokens in memory_profiles(c.engine, c.version, c.arch, workload):
        yield c.replace(gpu_memory_utilization=share, max_num_batched_tokens=tokens)


def _sized(c: Configuration, workload: Workload, runs: Sequence[Run]) -> Candidate | None:
    """With the context cut to what one rank's KV cache holds for sure, where none was asked for."""
    least = least_tokens(workload)
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
    speed = measured_speed(c, memory, workload, runs)
    held = memory.kv_cache_tokens * c.num_replicas
    return Candidate(c, workload, memory, speed, held >= workload_tokens(workload, c.num_replicas))


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
    wanted = least_tokens(workload)
    return (
        f"the KV cache holds {memory.replica_tokens:,} tokens after {_gib(rank.term('weights'))} "
        f"GiB of weights, and one request may need {wanted:,}"
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
    return f"{num_bytes / GIB:.1f}"
