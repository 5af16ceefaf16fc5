"""What `m2 plan` gives an engine that `m2 serve` starts on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from m2serve.devices import local_hardware
from m2serve.engine.config import EngineConfig
from m2serve.plan.plan import choose
from m2serve.records import Plan, Workload
from m2serve.spec.hardware import Accelerator, hardware_text

# The front reads names and parses answers itself, and says where the engine listens.
_OURS = ("--served-model-name", "--host", "--port")


@dataclass(frozen=True)
class PlannedEngine:
    """`flags` by the engine's own names. Without an accelerator all is empty: the engine's own
    defaults serve a CPU. `plan` None: there was nothing to plan."""

    accelerators: tuple[Accelerator, ...] = ()
    flags: tuple[tuple[str, str | None], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    host_commands: tuple[str, ...] = ()
    plan: Plan | None = None


def local_workload(max_model_len: int) -> Workload:
    """The default one, within the context that was asked for; 0: the checkpoint's own."""
    usual = Workload()
    if not max_model_len:
        return usual
    output_len = max(1, min(usual.output_len, max_model_len // 4))
    input_len = max(1, min(usual.input_len, max_model_len - output_len))
    return replace(usual, max_model_len=max_model_len, input_len=input_len, output_len=output_len)


def planned_engine(kind: str, config: EngineConfig, overridden: frozenset[str]) -> PlannedEngine:
    """The best settings of engine `kind` for the checkpoint here; `overridden` names flags that
    were given. Raises ResourceError with the reasons when the checkpoint does not run here.
    """
    hardware = local_hardware()
    if hardware.groups[0].accelerator.vendor == "cpu":
        return PlannedEngine()
    workload = local_workload(config.max_model_len)
    text = hardware_text(hardware)
    plan, _ = choose(config.model_path, text, workload, kind, allow_replicas=False)
    wanted = [s for s in plan.settings if s.name not in (*_OURS, *overridden)]
    return PlannedEngine(
        accelerators=hardware.devices,
        flags=tuple((s.name, s.value) for s in wanted if s.kind == "flag"),
        env={s.name: s.value or "" for s in wanted if s.kind == "env"},
        host_commands=tuple(s.name for s in wanted if s.kind == "system"),
        plan=plan,
    )
