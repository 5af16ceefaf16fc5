"""`m2 serve --engine auto`: the own engine or a started one, for the machine it runs on, and why.

The own engine computes on processors and on one GPU; its path on a GPU is PyTorch without kernels
of its own, so that an installed vLLM or SGLang is preferred there. What outgrows one GPU is for the
engine of the best plan.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from m2serve.devices import local_hardware
from m2serve.errors import M2Error, ResourceError
from m2serve.launch.local import COMMANDS, LaunchedName
from m2serve.plan.plan import choose
from m2serve.records import EngineName, Plan, Workload
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import DeviceGroup, Hardware, hardware_text

_TOOL_TIMEOUT_S = 60
_NO_KERNELS = "on a GPU it is PyTorch without kernels of its own"


@dataclass(frozen=True)
class Chosen:
    """`reason` completes "Engine: kind, " in one line."""

    kind: EngineName
    reason: str


@dataclass(frozen=True)
class Here:
    """What this machine has; functions, so that nothing is looked for in vain."""

    hardware: Callable[[], Hardware] = lambda: local_hardware()
    is_installed: Callable[[LaunchedName], bool] = lambda kind: is_installed(kind)
    has_docker: Callable[[], bool] = lambda: shutil.which("docker") is not None
    has_gpu_torch: Callable[[], bool] = lambda: torch_finds_a_gpu()


def choose_engine(
    model_path: str, workload: Workload, own_options: Collection[str], here: Here | None = None
) -> Chosen:
    """`model_path` "" without MODEL; `own_options` were given and mean nothing elsewhere.

    Raises ResourceError when no engine can run the checkpoint here.
    """
    if not model_path:
        return Chosen("own", "the miniature is its own")
    if own_options:
        option = sorted(own_options)[0].replace("_", "-")
        return Chosen("own", f"no other engine has --{option}")
    here = here or Here()
    try:
        hardware = here.hardware()
    except ResourceError as error:
        return Chosen("own", f"nothing can be planned: {str(error).partition(';')[0]}")
    if hardware.groups[0].accelerator.vendor == "cpu":
        return Chosen("own", "no accelerator is here")
    return _for_accelerators(model_path, workload, hardware, here)


def is_installed(kind: LaunchedName) -> bool:
    """Whether the command that `m2 serve` starts is there, SGLang's as a module of its Python."""
    program = shutil.which(COMMANDS[kind][0])
    if program is None or kind != "sglang":
        return program is not None
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sglang') is None)"
    return _succeeds(program, "-c", code)


def torch_finds_a_gpu() -> bool:
    """In a process of its own: this one never imports torch."""
    return _succeeds(
        sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"
    )


def _succeeds(*command: str) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _for_accelerators(model: str, workload: Workload, hardware: Hardware, here: Here) -> Chosen:
    first = hardware.groups[0].accelerator
    what = hardware_text(hardware)
    plans, objections = _plans(model, workload, hardware)
    names = [plan.engine for plan in plans]
    installed = next((plan for plan in plans if here.is_installed(_started(plan))), None)
    if installed is not None:
        better = "" if installed is plans[0] else f"; {names[0]} would be better, not installed"
        return Chosen(installed.engine, f"the best installed engine for {what}{better}")
    is_one_gpu = len(hardware.devices) == 1
    if is_one_gpu and _own_fits(model, workload, hardware, here):
        missing = f"{' and '.join(names)} not installed; " if names else ""
        return Chosen("own", f"{missing}it fits the {first.title}, though {_NO_KERNELS}")
    for plan in plans if here.has_docker() else ():
        if find_engine(plan.engine).image_for(plan.engine_version, first.arch):
            return Chosen(plan.engine, f"the best for {what}, in a container as not installed")
    if not is_one_gpu and _own_fits(model, workload, hardware, here):
        missing = (
            f"{names[0]} is neither installed nor to be had as a container"
            if names
            else f"no other engine runs it on {what}"
        )
        return Chosen("own", f"{missing}; it fits one {first.title}, though {_NO_KERNELS}")
    if names:
        raise ResourceError(
            f"{model} needs {names[0]} on {what}, which is neither installed nor to be had as a "
            f"container, and the own engine cannot run it there; install {names[0]} or docker, or "
            "compute on the processors with --engine own --device cpu"
        )
    raise ResourceError("; ".join(objections))


def _plans(model: str, workload: Workload, hardware: Hardware) -> tuple[list[Plan], list[str]]:
    """Of every engine that `m2 serve` can start here, the best first; and why the others cannot."""
    plans: list[Plan] = []
    objections: list[str] = []
    for found in _every_plan(model, workload, hardware):
        if isinstance(found, Plan):
            plans.append(found)
        else:
            objections.append(str(found))
    best = [plan for plan in plans if plan.engine == _best_engine(model, workload, hardware)]
    return best + [plan for plan in plans if plan not in best], objections


def _every_plan(model: str, workload: Workload, hardware: Hardware) -> Iterator[Plan | M2Error]:
    for kind in COMMANDS:
        try:
            yield _plan(model, workload, hardware, kind)
        except M2Error as error:
            yield error


def _best_engine(model: str, workload: Workload, hardware: Hardware) -> str:
    try:
        return _plan(model, workload, hardware, "auto").engine
    except M2Error:
        return ""


def _plan(model: str, workload: Workload, hardware: Hardware, engine: str) -> Plan:
    text, memory = hardware_text(hardware), hardware.host_memory_bytes
    options = (engine, "", hardware.num_nodes, memory)
    return choose(model, text, workload, *options, allow_replicas=False)[0]


def _started(plan: Plan) -> LaunchedName:
    return plan.engine  # type: ignore[return-value]


def _own_fits(model: str, workload: Workload, hardware: Hardware, here: Here) -> bool:
    """On the first GPU, by memory and kernels, with a torch that finds it."""
    one = Hardware((DeviceGroup(hardware.groups[0].accelerator, 1),))
    try:
        _plan(model, workload, one, "own")
    except M2Error:
        return False
    return here.has_gpu_torch()
