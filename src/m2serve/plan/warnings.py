"""What to know before relying on a plan: licence, tight memory, unverified figures, lost speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from m2serve.plan.configuration import Configuration
from m2serve.plan.measured import is_of
from m2serve.plan.overhead import SOURCE
from m2serve.plan.ranking import Candidate, request_tokens, workload_tokens
from m2serve.plan.run_records import Run
from m2serve.records import Workload
from m2serve.spec.cost import active_bytes_per_token
from m2serve.spec.hardware import Hardware
from m2serve.spec.units import GIB

_HOST_RAM_TO_LOAD_GIB = 64


def warnings_of(
    candidate: Candidate, machine: Hardware, runs: Sequence[Run] = ()
) -> tuple[str, ...]:
    """`machine` is all the hardware the user has; a plan for the lowest cost may take fewer."""
    workload = candidate.workload
    return (
        *_licence(candidate),
        *_free_devices(candidate, machine),
        *_order(machine),
        *_memory(candidate, workload),
        *_speed(candidate, workload),
        *_measured(candidate, runs),
        *_formats(candidate),
        *_fewer_bytes(candidate),
        *_draft(candidate),
        *_loading(candidate),
        *_hardware(candidate),
    )


def _order(machine: Hardware) -> Iterator[str]:
    if not machine.is_uniform:
        yield (
            "Unequal cards are told apart by their numbers: name the hardware in the order of "
            "nvidia-smi (or the vendor's own tool), or layers of a big card land on a small one."
        )


def _licence(candidate: Candidate) -> Iterator[str]:
    variant = candidate.configuration.variant
    if variant.licence_warning:
        yield variant.licence_warning
    elif not variant.licence:
        yield "The folder does not tell which release it is: M2.7's licence is non-commercial."


def _free_devices(candidate: Candidate, machine: Hardware) -> Iterator[str]:
    own, whole = len(candidate.configuration.machine.devices), len(machine.devices)
    if own < whole:
        yield f"The plan takes {own} of {whole} devices; the others stay free."


def _memory(candidate: Candidate, workload: Workload) -> Iterator[str]:
    c, memory = candidate.configuration, candidate.memory
    if not workload.max_model_len and c.max_model_len < c.variant.max_model_len:
        yield (
            f"The context is cut to {c.max_model_len:,} of {c.variant.max_model_len:,} tokens, "
            "what the KV cache holds even if the overhead is a quarter above its estimate."
        )
    if not candidate.holds_workload:
        yield (
            f"The KV cache holds {candidate.kv_cache_tokens:,} tokens, the workload's users need "
            f"{workload_tokens(workload, c.num_replicas):,} at once: some will wait."
        )
    if memory.safe_tokens < c.max_model_len:
        is_context = memory.safe_tokens >= request_tokens(workload)
        cure = "lower the context" if is_context else _without_room(c)
        yield (
            f"Overhead is estimated ({SOURCE}). A quarter more leaves {memory.safe_tokens:,} "
            f"tokens, less than the context of {c.max_model_len:,}; if the engine does not start, "
            f"{cure}."
        )
    if c.cpu_offload_bytes:
        host = c.cpu_offload_bytes * c.devices_per_node / GIB
        yield f"Each node pins {host:.0f} GiB of host memory, and every step reads it over the bus."


def _without_room(c: Configuration) -> str:
    """What frees memory where the KV cache is not what fills it."""
    offload = c.engine.flag("cpu_offload_gb", c.version) if c.engine.name == "vllm" else None
    eager = None if c.enforce_eager else c.engine.flag("enforce_eager", c.version)
    amount = "more" if c.cpu_offload_bytes else "some"
    cures = [f"leave graphs out ({eager})"] if eager else []
    cures += [f"keep {amount} weights in host memory ({offload})"] if offload else []
    return " or ".join(cures) or "take a smaller checkpoint"


def _speed(candidate: Candidate, workload: Workload) -> Iterator[str]:
    speed = candidate.speed
    limits = (
        ("TTFT", workload.slo_ttft_ms, speed.ttft_ms),
        ("TPOT", workload.slo_tpot_ms, speed.tpot_ms),
    )
    for name, limit, estimate in limits:
        if limit is None or estimate.high <= limit:
            continue
        verdict = "is predicted above" if estimate.value > limit else "may exceed"
        yield (
            f"{name} {verdict} the SLO of {limit:g} ms: {estimate.value:.1f} ms "
            f"({estimate.low:.1f} to {estimate.high:.1f})."
        )
    if candidate.configuration.draft:
        yield "Drafting pays where the traffic is like the draft's training; compare without it."


def _measured(candidate: Candidate, runs: Sequence[Run]) -> Iterator[str]:
    if not runs or candidate.speed.tpot_ms.is_measured:
        return
    if not any(is_of(run, candidate.configuration) for run in runs):
        yield (
            f"None of the {len(runs)} measured runs is of this checkpoint, hardware, engine and a "
            "cut of all its devices: the figures are the forecast."
        )


def _formats(candidate: Candidate) -> Iterator[str]:
    c = candidate.configuration
    if c.held is not c.variant:
        yield (
            "FP8 has no arithmetic here: the weights become BF16 at load and take twice the "
            "memory; a W8A8 checkpoint does not."
        )
    for arch in c.archs:
        kernels = c.kernels("moe", c.held.experts_format, arch)
        working = [kernel for kernel in kernels if not kernel.is_broken]
        if c.engine.name == "own" or not all(kernel.is_weight_only for kernel in working):
            continue
        yield (
            f"On {arch} the {c.held.quantization.upper()} experts are unpacked in the kernel "
            f"({working[0].name}): they save memory and bandwidth, prefill gains nothing."
        )
    if c.variant.num_experts < 256:
        yield (
            f"{256 - c.variant.num_experts} of 256 experts were pruned from this checkpoint: "
            "measure its quality on your own tasks."
        )
    if c.held.quantization == "fp8" and c.arch == "sm_120" and c.parallelism.expert_parallel:
        local = c.held.num_experts // c.expert_shards
        yield (
            f"No tuned fused-MoE table ships for this card (E={local}, N=1536): tuning takes 5 "
            "to 10 minutes, and the file goes to the engine's fused_moe/configs folder."
        )


def _fewer_bytes(candidate: Candidate) -> Iterator[str]:
    """What our own engine can requantise at load where the plan's speed is bytes."""
    c = candidate.configuration
    held = c.held
    if c.engine.name != "own" or held.attention_format != "bf16":
        return
    stored, fewer = (
        active_bytes_per_token(c.shape, held.experts_format, dense, dense) / 1e9
        for dense in ("bf16", "fp8")
    )
    yield (
        f"--attention-format fp8 --head-format fp8 would read {fewer:.1f} instead of {stored:.1f} "
        "GB a token; what that costs in quality is in docs/requantizing.md."
    )


def _draft(candidate: Candidate) -> Iterator[str]:
    c = candidate.configuration
    if c.variant.draft and not c.draft and c.engine.name in ("vllm", "sglang"):
        yield (
            f"The draft {c.variant.draft} is left out: on real traffic the known ones were slower "
            "than none (rtx6kpro); measure it on yours."
        )


def _loading(candidate: Candidate) -> Iterator[str]:
    c = candidate.configuration
    known = c.hardware.host_memory_bytes
    if c.engine.name == "sglang" and (not known or known < _HOST_RAM_TO_LOAD_GIB * GIB):
        yield (
            f"SGLang stages weights in host memory: with less than {_HOST_RAM_TO_LOAD_GIB} GiB the "
            "scheduler is killed while loading (exit code -9)."
        )


def _hardware(candidate: Candidate) -> Iterator[str]:
    unverified = {d.name for d in candidate.configuration.devices if not d.is_verified}
    for name in sorted(unverified):
        yield f"Figures of {name} are from sources that disagree or were not verified."
