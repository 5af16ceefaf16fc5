"""What `m2 plan` gives an engine that `m2 serve` starts on this machine."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import typer

from m2serve.devices import local_hardware
from m2serve.engine.config import EngineConfig
from m2serve.environment import one_cpu_a_core, usable_cpus
from m2serve.errors import ResourceError
from m2serve.plan.plan import choose
from m2serve.records import Plan, Setting, Workload
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import Accelerator, hardware_text, parse_hardware

# The front reads names and parses answers itself, and says where the engine listens.
_OURS = ("--served-model-name", "--host", "--port")


@dataclass(frozen=True)
class PlannedEngine:
    """`flags` by the engine's own names. Without an accelerator there are none: the engine's own
    defaults serve a CPU. `devices` are the accelerators' numbers, () the first ones. `plan` None:
    there was nothing to plan."""

    accelerators: tuple[Accelerator, ...] = ()
    devices: tuple[int, ...] = ()
    flags: tuple[tuple[str, str | None], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    host_commands: tuple[str, ...] = ()
    plan: Plan | None = None


def local_workload(max_model_len: int, max_num_seqs: int) -> Workload:
    """As many users as the server lets in at once, within the context that was asked for; 0: the
    checkpoint's own."""
    usual = Workload(concurrency=max_num_seqs)
    if not max_model_len:
        return usual
    output_len = max(1, min(usual.output_len, max_model_len // 4))
    input_len = max(1, min(usual.input_len, max_model_len - output_len))
    return replace(usual, max_model_len=max_model_len, input_len=input_len, output_len=output_len)


def planned_engine(
    kind: str,
    config: EngineConfig,
    overridden: frozenset[str],
    version: str = "",
    arguments: Sequence[str] = (),
) -> PlannedEngine:
    """The best settings of engine `kind` for the checkpoint here; `overridden` names flags that
    were given, `version` is the installed release ("" not known), `arguments` the user's own.
    Raises ResourceError with the reasons when the checkpoint does not run here.
    """
    hardware = local_hardware()
    if hardware.groups[0].accelerator.vendor == "cpu":
        return PlannedEngine(env=cpu_binding(arguments, one_cpu_a_core(usable_cpus())))
    workload = local_workload(config.max_model_len, config.max_num_seqs)
    text = hardware_text(hardware)
    plan = _plan(kind, config.model_path, text, workload, version)
    wanted = [s for s in plan.settings if s.name not in (*_OURS, *overridden)]
    wanted = [s for s in wanted if _is_known(s, kind, version)]
    used = parse_hardware(plan.hardware).devices
    return PlannedEngine(
        accelerators=used,
        devices=plan.devices,
        flags=tuple((s.name, s.value) for s in wanted if s.kind == "flag"),
        env={s.name: s.value or "" for s in wanted if s.kind == "env"},
        host_commands=tuple(s.name for s in wanted if s.kind == "system"),
        plan=plan,
    )


def _plan(kind: str, model: str, hardware: str, workload: Workload, version: str) -> Plan:
    """For the installed release; where a known issue or floor speaks against it, that is said, and
    the plan is the one for the release it should be."""
    try:
        return choose(model, hardware, workload, kind, version, allow_replicas=False)[0]
    except ResourceError as error:
        if not version:
            raise
        plan = choose(model, hardware, workload, kind, allow_replicas=False)[0]
        typer.echo(
            f"{kind} {version} is installed, {plan.engine_version} would be right: {error}",
            err=True,
        )
        return plan


def _is_known(setting: Setting, kind: str, version: str) -> bool:
    """Whether the installed release has the flag or variable; any, where the release is unknown."""
    engine = find_engine(kind)
    if not version or setting.kind == "system":
        return True
    known = engine.knows_flag if setting.kind == "flag" else engine.knows_env
    return known(setting.name, version)


_RANKS = {
    "--tensor-parallel-size": "tensor",
    "-tp": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "-pp": "pipeline",
    "--data-parallel-size": "data",
    "-dp": "data",
}


def cpu_binding(arguments: Sequence[str], cpus: Sequence[int]) -> dict[str, str]:
    """vLLM's variable that gives each rank cores of its own: with more ranks than NUMA nodes it
    dies without ("Not enough allowed NUMA nodes"). Nothing for one rank, or where it is set.

    `arguments` are vLLM's, of which the last of a kind counts; `cpus` one processor of each core.
    """
    name = "VLLM_CPU_OMP_THREADS_BIND"
    sizes: dict[str, int] = {}
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for flag, value in itertools.pairwise(words):
        kind = _RANKS.get(flag.replace("_", "-"))
        if kind and value.isascii() and value.isdecimal():
            sizes[kind] = int(value)
    ranks = math.prod(sizes.values())
    if not 2 <= ranks <= len(cpus) or name in os.environ:
        return {}
    edges = [len(cpus) * rank // ranks for rank in range(ranks + 1)]
    shares = (cpus[low:high] for low, high in itertools.pairwise(edges))
    return {name: "|".join(",".join(str(cpu) for cpu in share) for share in shares)}
