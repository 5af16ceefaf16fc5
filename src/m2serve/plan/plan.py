"""A model, hardware and a workload in; how to run it, why, how fast and what to watch for out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from m2serve.errors import ResourceError, UsageError
from m2serve.plan.candidates import variants_for
from m2serve.plan.configuration import Configuration
from m2serve.plan.departures import departures_of
from m2serve.plan.issues import is_serious, issue_notes, open_issues, with_remedies
from m2serve.plan.ranking import Candidate, comparison, request_tokens
from m2serve.plan.run_records import Run
from m2serve.plan.search import MAX_RUNNERS_UP, Search, search
from m2serve.plan.setting import Settings
from m2serve.plan.settings import bare_settings, settings_of
from m2serve.plan.warnings import warnings_of
from m2serve.records import Plan, Rejection, Setting, Workload
from m2serve.spec.engines import Engine, find_engine, load_engines
from m2serve.spec.hardware import Hardware, hardware_text, parse_hardware
from m2serve.spec.variants import Variant
from m2serve.spec.versions import Version

_MAX_REASONS = 6
_DEFAULT_WORKLOAD = Workload()
_LIMITS = {"concurrency": 1 << 20, "input_len": 1 << 24, "output_len": 1 << 24}


def make_plan(
    model: str,
    hardware: str,
    workload: Workload = _DEFAULT_WORKLOAD,
    *,
    engine: str = "auto",
    engine_version: str = "",
    num_nodes: int = 1,
    host_memory_bytes: int = 0,
    runs: Sequence[Run] = (),
    allow_replicas: bool = True,
) -> Plan:
    """The best way to run a model on a machine; arguments and errors as for `choose`."""
    options = (engine, engine_version, num_nodes, host_memory_bytes, runs, allow_replicas)
    return choose(model, hardware, workload, *options)[0]


def choose(
    model: str,
    hardware: str,
    workload: Workload,
    engine: str = "auto",
    engine_version: str = "",
    num_nodes: int = 1,
    host_memory_bytes: int = 0,
    runs: Sequence[Run] = (),
    allow_replicas: bool = True,
) -> tuple[Plan, Configuration]:
    """The plan, and the configuration it is made of.

    `model` is a hub id, a folder or a family ("MiniMax-M2.5"), `hardware` a text for
    spec.hardware.parse_hardware. `runs` were measured (plan/run_records.py). Without
    `allow_replicas` one server has all the devices.

    Raises UsageError for what is unknown or contradicts itself, ResourceError with the reasons when
    nothing can run.
    """
    _check(workload)
    machine = parse_hardware(hardware, num_nodes)
    machine = Hardware(machine.groups, machine.num_nodes, machine.power_limit_w, host_memory_bytes)
    variants = variants_for(model)
    engines = _engines(engine, engine_version)
    result = search(engines, variants, machine, workload, runs, allow_replicas=allow_replicas)
    if not result.found:
        raise ResourceError(_why_nothing(model, hardware, result))
    best, settings, skipped = _first_sound(result)
    warnings = (
        *warnings_of(best, machine, runs),
        *_one_server_a_node(best, machine, engines, variants, runs, allow_replicas),
    )
    plan = _plan(model, best, settings, skipped, result, warnings, machine)
    return plan, best.configuration


def _one_server_a_node(
    best: Candidate,
    machine: Hardware,
    engines: Sequence[tuple[Engine, str]],
    variants: Sequence[Variant],
    runs: Sequence[Run],
    allow_replicas: bool,
) -> Iterator[str]:
    """Whether as many independent servers as nodes would do better than one over all of them."""
    nodes, workload = machine.num_nodes, best.workload
    if nodes == 1 or best.configuration.hardware.num_nodes == 1:
        return
    share = replace(workload, concurrency=-(-workload.concurrency // nodes))
    node = replace(machine, num_nodes=1)
    found = search(engines, variants, node, share, runs, allow_replicas=allow_replicas).found
    if not found or not found[0].holds_workload:
        return
    alone = found[0]
    rate = min(nodes, workload.concurrency) * alone.speed.output_tokens_per_s.value
    tpot = alone.speed.tpot_ms.value
    is_better = rate > best.speed.output_tokens_per_s.value
    if workload.objective == "latency":
        is_better = tpot < best.speed.tpot_ms.value
    if is_better:
        yield (
            f"One server a node is predicted better: {alone.configuration} on each, {tpot:.1f} ms "
            f"a token and {rate:,.0f} tokens/s on all {nodes} nodes. Plan a node alone, and put "
            "`m2 serve MODEL --upstream URL --upstream URL` in front."
        )


def _check(workload: Workload) -> None:
    for name, limit in _LIMITS.items():
        value = getattr(workload, name)
        if not 1 <= value <= limit:
            raise UsageError(f"{name} is {value}; 1 to {limit} is needed")
    if not 0 <= workload.prefix_hit <= 1:
        raise UsageError(f"prefix_hit is {workload.prefix_hit}; a share from 0 to 1 is needed")
    for slo in (workload.slo_ttft_ms, workload.slo_tpot_ms):
        if slo is not None and not slo > 0:
            raise UsageError(f"an SLO of {slo} ms cannot be met; it must be positive")
    if workload.max_model_len and request_tokens(workload) > workload.max_model_len:
        raise UsageError(
            f"{workload.input_len:,} + {workload.output_len:,} tokens are more than the context of "
            f"{workload.max_model_len:,}"
        )


def _engines(name: str, version: str) -> tuple[tuple[Engine, str], ...]:
    if version:
        Version.parse(version)
    if name == "auto":
        if version:
            raise UsageError("an engine version needs an engine; name it with --engine")
        return tuple((engine, "") for engine in load_engines())
    return ((find_engine(name), version),)


def _first_sound(
    result: Search,
) -> tuple[Candidate, Settings, dict[str, str]]:
    """The best candidate that no known issue makes fail or answer wrongly; else the best of all.

    Also the ones passed over, with the issue.
    """
    skipped: dict[str, str] = {}
    for candidate in result.found:
        c = candidate.configuration
        settings = _settings(candidate)
        serious = [i for i in open_issues(c, settings, candidate.workload) if is_serious(i)]
        if not serious:
            return candidate, settings, skipped
        skipped[str(c)] = f"{serious[0].id}, {serious[0].title} ({serious[0].reference})"
    best = result.found[0]
    return best, _settings(best), {}


def _settings(candidate: Candidate) -> Settings:
    c, workload = candidate.configuration, candidate.workload
    return with_remedies(c, settings_of(c, candidate.memory, workload), workload)


def _plan(
    model: str,
    best: Candidate,
    settings: Settings,
    skipped: dict[str, str],
    result: Search,
    warnings: tuple[str, ...],
    machine: Hardware,
) -> Plan:
    c, workload = best.configuration, best.workload
    is_family = "/" not in model and c.variant.own_shape is None
    bare = bare_settings(c)
    devices = _device_numbers(c.machine, machine)
    settings = _by_number(c, settings, devices)
    return Plan(
        model=c.variant.name if is_family else model,
        variant="" if c.variant.own_shape is not None else c.variant.name,
        hardware=hardware_text(c.machine),
        num_nodes=c.hardware.num_nodes,
        engine=c.engine.name,  # type: ignore[arg-type]
        engine_version=c.version,
        image=c.engine.image_for(c.version, c.arch),
        parallelism=c.parallelism,
        kv_cache_dtype=c.kv_cache_dtype,
        max_model_len=c.max_model_len,
        workload=workload,
        settings=settings,
        ranks=best.memory.ranks,
        kv_cache_tokens=best.kv_cache_tokens,
        speed=best.speed,
        issues=issue_notes(c, settings, bare, workload),
        warnings=warnings,
        runners_up=_runners_up(best, skipped, result),
        rejected=result.rejected,
        departures=departures_of(c, settings, workload),
        num_replicas=c.num_replicas,
        devices=devices,
    )


def _device_numbers(used: Hardware, machine: Hardware) -> tuple[int, ...]:
    """Of one kind of device on an unequal machine, counted as its vendor's tools do; () where all
    or the first of equal ones are used.
    """
    if machine.is_uniform or not used.is_uniform:
        return ()
    (group,) = used.groups
    vendor = group.accelerator.vendor
    node = (device for other in machine.groups for device in [other.accelerator] * other.count)
    of_vendor = enumerate(device for device in node if device.vendor == vendor)
    numbers = (number for number, device in of_vendor if device == group.accelerator)
    return tuple(islice(numbers, group.count))


def _by_number(c: Configuration, settings: Settings, devices: tuple[int, ...]) -> Settings:
    """CUDA counts the fastest card first unless it is told otherwise."""
    name = "CUDA_DEVICE_ORDER"
    if not devices or c.devices[0].vendor != "nvidia" or name in {s.name for s in settings}:
        return settings
    reason = "the numbers of the plan's cards are those of nvidia-smi"
    return (*settings, Setting("env", name, "PCI_BUS_ID", reason, "CUDA"))


def _runners_up(best: Candidate, skipped: dict[str, str], result: Search) -> tuple[Rejection, ...]:
    """The best of each other engine, quantization and KV dtype, and with replicas or without."""
    seen = {_kind(best, best)}
    notes: list[Rejection] = []
    for other in result.found:
        kind = _kind(other, best)
        if kind in seen or len(notes) == MAX_RUNNERS_UP:
            continue
        seen.add(kind)
        name = str(other.configuration)
        reason = skipped.get(name) or comparison(best, other)
        notes.append(Rejection(name, reason))
    return tuple(notes)


def _kind(candidate: Candidate, best: Candidate) -> tuple[object, ...]:
    """Several servers instead of one, or one instead of several, is a kind of its own."""
    c = candidate.configuration
    if (c.num_replicas > 1) != (best.configuration.num_replicas > 1):
        return (c.num_replicas > 1,)
    return (c.engine.name, _family(c.variant), c.kv_cache_dtype)


def _family(variant: Variant) -> tuple[object, ...]:
    return (variant.quantization, variant.num_experts)


def _why_nothing(model: str, hardware: str, result: Search) -> str:
    reasons = list(dict.fromkeys(f"{r.configuration}: {r.reason}" for r in result.rejected))
    shown = "; ".join(reasons[:_MAX_REASONS])
    more = len(reasons) - _MAX_REASONS
    return f"{model} does not run on {hardware}: {shown}" + (
        f"; and {more} more" if more > 0 else ""
    )
