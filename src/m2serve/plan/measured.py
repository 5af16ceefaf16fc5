"""Measured beats modelled: what runs of a deployment say about its forecast.

A run is of a configuration when checkpoint, hardware and engine are the same. With the same cut and
KV dtype as well, and users and context within a quarter, its figures replace the forecast: the
median of the runs, moved by what the model says of the rest of the difference. Any other run of it
within a factor of eight rescales: the model is taken to be off here by the factor it is off there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from m2serve.plan.configuration import Configuration, describe_replicas
from m2serve.plan.memory import MemoryPlan, plan_memory
from m2serve.plan.predict import predict
from m2serve.plan.run_records import Run
from m2serve.plan.speed_constants import load_constants
from m2serve.records import Estimate, Parallelism, RunRecord, Speed, Workload
from m2serve.spec.hardware import DeviceGroup, Hardware

SAME_CLASS = 1.25
MAX_APART = 8.0
_SAME_HIT = 0.1
# Runs of the same thing differ by this much, whatever the few at hand say.
_MIN_SPREAD = 0.05


def measured_speed(
    c: Configuration, memory: MemoryPlan, workload: Workload, runs: Sequence[Run]
) -> Speed:
    """The forecast, replaced or rescaled by the runs of this configuration."""
    modelled = predict(c, memory, workload)
    own = [run for run in runs if is_of(run, c) and distance(run, workload) <= math.log(MAX_APART)]
    if not own:
        return modelled
    same = [run for run in own if is_same(run, c, workload)]
    if not same:
        nearest = min(own, key=lambda run: (not _same_cut(run, c), distance(run, workload)))
        own = [run for run in own if _conditions(run) == _conditions(nearest)]
    chosen = same or own
    forecasts = [_forecast(run, c, memory) for run in chosen]
    basis = _measured_basis(chosen, c) if same else _rescaled_basis(chosen)
    return Speed(
        _estimate(modelled.ttft_ms, chosen, forecasts, _ttft, bool(same), basis),
        _estimate(modelled.tpot_ms, chosen, forecasts, _tpot, bool(same), basis),
        _estimate(modelled.output_tokens_per_s, chosen, forecasts, _rate, bool(same), basis),
    )


def is_of(run: Run, c: Configuration) -> bool:
    """Same checkpoint, hardware and engine, with a cut that the run tells and the hardware has."""
    if run.hardware is None or run.record.engine != c.engine.name:
        return False
    cut, machine = _cut(run, c), c.machine
    return (
        _is_model(run.record.model, c)
        and cut is not None
        and cut.world_size * run.num_replicas == len(machine.devices)
        and _named(run.hardware) == _named(machine)
        and run.hardware.power_limit_w == machine.power_limit_w
    )


def is_same(run: Run, c: Configuration, workload: Workload) -> bool:
    """Also the same cut, KV dtype and class of load."""
    return (
        _same_cut(run, c)
        and distance(run, workload) <= math.log(SAME_CLASS)
        and abs(run.prefix_hit - workload.prefix_hit) <= _SAME_HIT
    )


def distance(run: Run, workload: Workload) -> float:
    """Of users or of mean context, the larger logarithm of the ratio."""
    record = run.record
    users = abs(math.log(max(1, record.concurrency) / workload.concurrency))
    context = record.input_len + record.output_len / 2
    wanted = workload.input_len + workload.output_len / 2
    return max(users, abs(math.log(max(1.0, context) / wanted)))


def _is_model(name: str, c: Configuration) -> bool:
    """A hub id as it is; a folder by its last part. A bare name tells no quantization."""
    own, other = c.variant.name.rstrip("/").lower(), name.rstrip("/").lower()
    if own == other:
        return True
    is_folder = name.startswith(("/", ".", "~")) or c.variant.own_shape is not None
    return is_folder and "/" in other and own.rpartition("/")[2] == other.rpartition("/")[2]


def _cut(run: Run, c: Configuration) -> Parallelism | None:
    if run.cut is None and len(c.machine.devices) == 1:
        return Parallelism()
    return run.cut


def _same_cut(run: Run, c: Configuration) -> bool:
    cut = c.parallelism
    return (
        _cut(run, c) == cut
        and run.num_replicas == c.num_replicas
        and run.kv_cache_dtype == c.kv_cache_dtype
    )


def _named(hardware: Hardware) -> tuple[object, ...]:
    groups = tuple((group.accelerator.name, group.count) for group in hardware.groups)
    return groups, hardware.num_nodes


def _conditions(run: Run) -> tuple[object, ...]:
    record = run.record
    load = (record.concurrency, record.input_len, record.output_len, run.prefix_hit)
    return (*load, run.cut, run.num_replicas, run.kv_cache_dtype)


def _forecast(run: Run, c: Configuration, memory: MemoryPlan) -> Speed:
    """What the model says of the run itself."""
    record = run.record
    workload = Workload(
        concurrency=max(1, record.concurrency),
        input_len=max(1, record.input_len),
        output_len=max(1, record.output_len),
        prefix_hit=run.prefix_hit,
    )
    if not _same_cut(run, c):
        c = c.replace(
            parallelism=_cut(run, c),
            num_replicas=run.num_replicas,
            hardware=_share(c.machine, run.num_replicas),
            kv_cache_dtype=run.kv_cache_dtype,
        )
        memory = plan_memory(c)
    return predict(c, memory, workload)


def _share(machine: Hardware, num_replicas: int) -> Hardware:
    if num_replicas == 1:
        return machine
    (group,) = machine.groups
    return Hardware(
        (DeviceGroup(group.accelerator, group.count // num_replicas),),
        machine.num_nodes,
        machine.power_limit_w,
        machine.host_memory_bytes,
    )


def _estimate(
    modelled: Estimate,
    runs: Sequence[Run],
    forecasts: Sequence[Speed],
    metric: Callable[[RunRecord | Speed], float],
    is_measured: bool,
    basis: str,
) -> Estimate:
    pairs = [(metric(r.record), metric(f)) for r, f in zip(runs, forecasts, strict=True)]
    ratios = [measured / forecast for measured, forecast in pairs if measured > 0]
    if not ratios:
        return modelled
    ratio = median(ratios)
    value = modelled.value * ratio
    if not is_measured:
        spread = load_constants().tpot_spread[0]
        source = f"forecast times {ratio:.2f}, as far as it is off {basis}"
        return Estimate(value, value / (1 + spread), value * (1 + spread), source)
    low = min(modelled.value * min(ratios), value / (1 + _MIN_SPREAD))
    high = max(modelled.value * max(ratios), value * (1 + _MIN_SPREAD))
    return Estimate(value, low, high, basis, is_measured=True)


def _measured_basis(runs: Sequence[Run], c: Configuration) -> str:
    others = {run.record.engine_version for run in runs} - {"", c.version}
    release = f", {c.engine.name} {', '.join(sorted(others))}" if others else ""
    return f"measured on {_dates(runs)} ({_count(runs)}{release}: {_files(runs)})"


def _rescaled_basis(runs: Sequence[Run]) -> str:
    record, first = runs[0].record, runs[0]
    cut = "" if first.cut is None else f", {describe_replicas(first.num_replicas, first.cut)}"
    load = f"{record.concurrency} users, {record.input_len:,} + {record.output_len:,} tokens"
    return f"at {load}{cut} on {_dates(runs)} ({_count(runs)}: {_files(runs)})"


def _dates(runs: Sequence[Run]) -> str:
    days = sorted({run.date for run in runs})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _count(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}"


def _files(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(_provenance(run) for run in runs))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _provenance(run: Run) -> str:
    return f"{run.file} at {run.record.commit[:12]}" if run.record.commit else run.file


def _ttft(of: RunRecord | Speed) -> float:
    return of.ttft_ms.value if isinstance(of, Speed) else of.ttft_ms


def _tpot(of: RunRecord | Speed) -> float:
    return of.tpot_ms.value if isinstance(of, Speed) else of.tpot_ms


def _rate(of: RunRecord | Speed) -> float:
    return of.output_tokens_per_s.value if isinstance(of, Speed) else of.output_tokens_per_s
