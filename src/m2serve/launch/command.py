"""A plan as commands: argv, environment and host commands of every node. Pure.

Addresses and interfaces that are not given stay placeholders (launch/placeholders.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from m2serve.launch.options import (
    DEFAULTS,
    LaunchOptions,
    check_options,
    devices_per_server,
    hardware_of,
)
from m2serve.launch.placeholders import fill
from m2serve.launch.replicas import front_argv, server_options
from m2serve.records import Launch, NodeLaunch, Plan, Setting
from m2serve.spec.engines import find_engine

_SOURCE = "launch"
_VLLM_MASTER_PORT = 29501
_PORT_FLAGS = {
    "--data-parallel-rpc-port": "data-parallel ranks of the other nodes, between nodes only",
    "--master-port": "torch.distributed, between nodes only",
}
_VISIBLE = {
    "nvidia": "CUDA_VISIBLE_DEVICES",
    "amd": "HIP_VISIBLE_DEVICES",
    "ascend": "ASCEND_RT_VISIBLE_DEVICES",
}
_MODELSCOPE = {
    "vllm": ("VLLM_USE_MODELSCOPE", "True"),
    "vllm-ascend": ("VLLM_USE_MODELSCOPE", "True"),
    "sglang": ("SGLANG_USE_MODELSCOPE", "true"),
}
_MODEL = "{model}"


def make_launch(plan: Plan, options: LaunchOptions = DEFAULTS) -> Launch:
    """The commands without any container, node 0 first: the others look for it.

    Raises UsageError for options or a model name that a command cannot carry.
    """
    check_options(plan, options)
    nodes = tuple(
        replace(_node_launch(plan, own, node), replica=number)
        for number, own in enumerate(server_options(plan, options))
        for node in range(plan.num_nodes)
    )
    front = front_argv(plan, options)
    return Launch(plan.engine, plan.model, nodes, ports_of(plan, options), front)


def program_of(plan: Plan, model: str = "") -> tuple[str, ...]:
    """The engine's program and the model, before any flag; `model` replaces the plan's."""
    command = find_engine(plan.engine).command
    return tuple((model or plan.model) if word == _MODEL else word for word in command)


def node_settings(plan: Plan, options: LaunchOptions, node: int) -> tuple[Setting, ...]:
    """Every setting of one node, those of the options first; values filled as far as known."""
    own = (*_listening(options, node), *_environment(plan, options))
    replaced = {setting.name for setting in own}
    planned = (s for s in plan.settings if s.node in (None, node) and s.name not in replaced)
    values = _known_values(options, node)
    return tuple(
        setting if setting.value is None else replace(setting, value=fill(setting.value, values))
        for setting in (*own, *planned)
    )


def flag_words(setting: Setting) -> tuple[str, ...]:
    return (setting.name,) if setting.value is None else (setting.name, setting.value)


def ports_of(plan: Plan, options: LaunchOptions) -> tuple[tuple[int, str], ...]:
    """Every port of the deployment and its purpose; all but the first are between nodes, or between
    our front and the servers behind it.
    """
    ports = [(options.port, "HTTP: clients, /health and /metrics, on node 0")]
    if plan.num_replicas > 1:
        ports = [(options.port, "HTTP: clients, /health and /metrics of the front, m2 serve")]
        servers = enumerate(server_options(plan, options))
        ports += [
            (own.port, f"HTTP of server {number}, for the front alone") for number, own in servers
        ]
    flags = {s.name: s.value for s in plan.settings if s.kind == "flag" and s.value is not None}
    ports += [(int(flags[name]), why) for name, why in _PORT_FLAGS.items() if name in flags]
    if "--master-addr" in flags and "--master-port" not in flags:
        ports.append((_VLLM_MASTER_PORT, _PORT_FLAGS["--master-port"]))
    if "--dist-init-addr" in flags:
        port = flags["--dist-init-addr"].rpartition(":")[2]
        ports.append((int(port), _PORT_FLAGS["--master-port"]))
    return tuple(ports)


def resource_name(plan: Plan) -> str:
    """A name for containers, jobs and Kubernetes objects: the served model's, as a DNS label."""
    served = next((s.value for s in plan.settings if s.name == "--served-model-name"), None)
    text = served or plan.model.rstrip("/").rpartition("/")[2]
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return label if label[:1].isalpha() else f"m2-{label}".strip("-")


def _node_launch(plan: Plan, options: LaunchOptions, node: int) -> NodeLaunch:
    settings = node_settings(plan, options, node)
    flags = [word for s in settings if s.kind == "flag" for word in flag_words(s)]
    return NodeLaunch(
        node=node,
        argv=(*program_of(plan), *flags),
        env=tuple((s.name, s.value or "") for s in settings if s.kind == "env"),
        host_commands=tuple(s.name for s in settings if s.kind == "system"),
        image=plan.image,
        num_devices=devices_per_server(plan),
        is_headless=node > 0,
    )


def _listening(options: LaunchOptions, node: int) -> tuple[Setting, ...]:
    if node:
        return ()
    who = "clients of this machine alone" if options.host == "127.0.0.1" else "where clients come"
    return (
        Setting("flag", "--host", options.host, who, _SOURCE),
        Setting("flag", "--port", str(options.port), "HTTP, with /health and /metrics", _SOURCE),
    )


def _environment(plan: Plan, options: LaunchOptions) -> tuple[Setting, ...]:
    settings: list[Setting] = []
    vendor = hardware_of(plan).groups[0].accelerator.vendor
    for name, value in visible_devices(vendor, options.devices).items():
        settings.append(Setting("env", name, value, "the devices chosen", _SOURCE))
    if options.hub == "modelscope" and plan.variant and plan.engine in _MODELSCOPE:
        name, value = _MODELSCOPE[plan.engine]
        settings.append(Setting("env", name, value, "weights come from ModelScope", _SOURCE))
    return tuple(settings)


def visible_devices(vendor: str, devices: Sequence[int]) -> dict[str, str]:
    """The variable that shows a program these devices alone; none for () and unknown vendors."""
    if not devices or vendor not in _VISIBLE:
        return {}
    return {_VISIBLE[vendor]: ",".join(str(device) for device in devices)}


def _known_values(options: LaunchOptions, node: int) -> dict[str, str]:
    values = {"nic": options.nic} if options.nic else {}
    if options.node_ips:
        values |= {"node0_ip": options.node_ips[0], "this_ip": options.node_ips[node]}
    return values
