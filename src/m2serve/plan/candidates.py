"""Every way to cut a model over the devices, and the memory settings each is tried with."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from m2serve.engine.config import DEFAULT_BATCHED_TOKENS
from m2serve.plan.settings_ascend import is_long
from m2serve.records import Objective, Parallelism, Workload
from m2serve.spec.engines import Engine
from m2serve.spec.hardware import Accelerator, DeviceGroup, Hardware
from m2serve.spec.variants import Variant, find_variant, load_variants
from m2serve.spec.versions import Version


def cuts(hardware: Hardware, engine: str, input_len: int) -> Iterator[Parallelism]:
    """Cuts whose ranks are the devices; which of them can run is for plan/rules.py. Data-parallel
    ranks always share whole experts, and stages are not combined with them. Long prompts alone are
    spread over prefill-context ranks.
    """
    count = len(hardware.devices)
    if not hardware.is_uniform:
        yield Parallelism(pipeline=count)
        return
    for tensor in _divisors(count):
        rest = count // tensor
        yield Parallelism(tensor, rest)
        if tensor > 1:
            yield Parallelism(tensor, rest, expert_parallel=True)
        if rest > 1:
            yield Parallelism(tensor, data=rest, expert_parallel=True)
        if engine == "vllm-ascend" and rest == 2 and is_long(input_len):
            yield Parallelism(tensor, expert_parallel=True, prefill_context=2)


def machines(hardware: Hardware, objective: Objective) -> tuple[Hardware, ...]:
    """All devices; of unequal ones also each kind alone, which is not held up by the slowest; for
    the lowest cost also fewer. The rest stays free.
    """
    if not hardware.is_uniform:
        kinds = Counter[Accelerator]()
        for group in hardware.groups:
            kinds[group.accelerator] += group.count
        alone = [(DeviceGroup(device, count),) for device, count in kinds.items()]
        each = (dataclasses.replace(hardware, groups=groups) for groups in alone)
        return (hardware, *chain.from_iterable(machines(kind, objective) for kind in each))
    if objective != "cost":
        return (hardware,)
    in_node = sum(group.count for group in hardware.groups)
    device = hardware.groups[0].accelerator
    shares = [count for count in _divisors(in_node) if count < in_node or hardware.num_nodes > 1]
    return (
        hardware,
        *(
            dataclasses.replace(hardware, groups=(DeviceGroup(device, count),), num_nodes=1)
            for count in shares
        ),
    )


def replica_shares(hardware: Hardware) -> tuple[tuple[Hardware, int], ...]:
    """Equal shares of one node's accelerators, each for an independent server, and their number."""
    if not hardware.is_uniform or hardware.num_nodes > 1:
        return ()
    device, count = hardware.groups[0].accelerator, len(hardware.devices)
    if device.vendor == "cpu":
        return ()
    return tuple(
        (dataclasses.replace(hardware, groups=(DeviceGroup(device, share),)), count // share)
        for share in _divisors(count)
        if share < count
    )


def kv_cache_dtypes(engine: str, variant: Variant) -> tuple[str, ...]:
    if engine == "vllm-ascend":
        return ("auto", "int8") if variant.has_kv_scales else ("auto",)
    return ("auto",) if engine == "own" else ("auto", "fp8")


def draft_for(engine: str, variant: Variant, kv_cache_dtype: str) -> str:
    """Eagle3 drafts pay on Ascend, where they were made with the checkpoint; elsewhere the known
    ones are slower than no draft on real traffic (rtx6kpro).
    """
    is_ascend = variant.draft.partition("/")[0] in ("vllm-ascend", "Eco-Tech")
    uses_it = engine == "vllm-ascend" and is_ascend and kv_cache_dtype == "auto"
    return variant.draft if uses_it else ""


def good_version(engine: Engine, variant: Variant, hardware: Hardware) -> str:
    """The engine's default, or the first known release that meets the floors above it."""
    wanted = Version.parse(engine.default_version)
    for group in hardware.groups:
        arch = group.accelerator.arch
        for floor in engine.floors_for(variant.base, variant.quantization, arch):
            wanted = max(wanted, Version.parse(floor.version))
    return wanted.text


def memory_profiles(
    engine: Engine, version: str, arch: str, workload: Workload
) -> tuple[tuple[float, int], ...]:
    """(gpu_memory_utilization, max_num_batched_tokens), the roomy one first, the tight one last."""
    if engine.name == "vllm-ascend":
        if is_long(workload.input_len):
            return (0.85, 65_536), (0.92, 65_536), (0.92, 16_384)
        return (0.85, 16_384), (0.92, 8_192)
    if engine.name == "own":
        return ((0.92, DEFAULT_BATCHED_TOKENS["cpu" if arch == "cpu" else "cuda"]),)
    if arch in ("sm_121", "gfx1151"):
        return (0.90, 8_192), (0.94, 2_048)
    return (0.92, 8_192), (0.95, 2_048)


def variants_for(model: str) -> tuple[Variant, ...]:
    """One for an exact checkpoint or a folder, every known one for a family ("MiniMax-M2.5", "M2").

    Of uploads that differ in nothing but their author the first is taken. Raises UsageError for a
    name that is neither.
    """
    base = model.strip().removeprefix("MiniMax-").removeprefix("minimax-").upper()
    family = [variant for variant in load_variants() if variant.base == base]
    if not family or "/" in model:
        return (find_variant(model),)
    kept: dict[tuple[object, ...], Variant] = {}
    for variant in family:
        kept.setdefault(_kind(variant), variant)
    return tuple(kept.values())


def _kind(variant: Variant) -> tuple[object, ...]:
    return (
        variant.quantization,
        variant.experts_format,
        variant.attention_format,
        variant.head_format,
        variant.num_experts,
        variant.max_model_len,
        variant.has_kv_scales,
        variant.checkpoint_bytes,
        "quarot" in variant.name.lower(),
    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
