"""A plan as Docker Compose files, one for each node. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from m2serve.launch.command import flag_words, make_launch, program_of, resource_name
from m2serve.launch.docker import inside_settings
from m2serve.launch.files import LaunchFile, node_file
from m2serve.launch.options import DEFAULTS, LaunchOptions
from m2serve.launch.placeholders import render
from m2serve.launch.plumbing import (
    HEALTH_INTERVAL_S,
    SHM_GIB,
    Plumbing,
    cache_folder,
    entrypoint_of,
    health_argv,
    model_in_container,
    plumbing_of,
    start_seconds,
)
from m2serve.launch.replicas import front_argv, replica_name, server_options
from m2serve.launch.shell import head_comments, one_line
from m2serve.launch.yaml_text import yaml_text
from m2serve.records import Plan, Setting


def compose_files(plan: Plan, options: LaunchOptions = DEFAULTS) -> tuple[LaunchFile, ...]:
    """compose.yaml, or compose-node0.yaml and on; `docker compose -f FILE up` on each node."""
    make_launch(plan, options)
    return tuple(
        LaunchFile(
            node_file(plan, "compose", "compose-node", "yaml", node),
            _text(plan, options, node),
        )
        for node in range(plan.num_nodes)
    )


def setting_comments(settings: Iterable[Setting], kinds: Iterable[str]) -> list[str]:
    """`NAME VALUE: reason`, a line for each; YAML writers have no place for comments inside."""
    wanted = set(kinds)
    lines = []
    for setting in settings:
        if setting.kind in wanted:
            text = " ".join(flag_words(setting)) if setting.kind != "env" else setting.name
            lines.append(one_line(f"{text}: {setting.reason}"))
    return lines


def _text(plan: Plan, options: LaunchOptions, node: int) -> str:
    settings = inside_settings(plan, options, node)
    comments = head_comments(plan, options)
    if front := front_argv(plan, options):
        comments.append(one_line(f"The front, on the host: {shlex.join(front)}"))
    host = setting_comments(settings, ("system",))
    comments += ["", "On the host, as root:", *host] if host else []
    if options.with_reasons:
        comments += ["", "Why:", *setting_comments(settings, ("env", "flag"))]
    services = {
        resource_name(plan) + replica_name(plan, number): _service(
            plan, own, inside_settings(plan, own, node), node
        )
        for number, own in enumerate(server_options(plan, options))
    }
    return yaml_text([{"services": services}], comments)


def _service(
    plan: Plan, options: LaunchOptions, settings: tuple[Setting, ...], node: int
) -> dict[str, Any]:
    program = program_of(plan, model_in_container(plan))
    flags = [word for s in settings if s.kind == "flag" for word in flag_words(s)]
    entrypoint = entrypoint_of(plan.engine)
    command = [*program[len(entrypoint) :], *flags]
    environment = {s.name: _value(s.value or "", options) for s in settings if s.kind == "env"}
    service: dict[str, Any] = {"image": _literal(plan.image), "init": True}
    if entrypoint:
        service["entrypoint"] = list(entrypoint)
    service["command"] = [_value(word, options) for word in command]
    # Without a value it is passed on from the shell that calls compose, where it is set.
    service["environment"] = {"HF_TOKEN": None, **environment}
    service |= _network(plan, options)
    service |= _devices(plumbing_of(plan, options), options)
    if node == 0:
        service["healthcheck"] = _health(plan, options)
    service["restart"] = "unless-stopped"
    return service


def _value(text: str, options: LaunchOptions) -> str:
    variables = {
        "node0_ip": "${NODE0_IP:?the address of node 0}",
        "this_ip": "${THIS_IP:?the address of this node}",
        "nic": "${NIC:?the interface that joins the nodes}",
        "cache": cache_folder(options),
    }
    return render(text, _literal, variables)


def _literal(text: str) -> str:
    return text.replace("$", "$$")


def _network(plan: Plan, options: LaunchOptions) -> dict[str, Any]:
    if plan.num_nodes > 1:
        return {"network_mode": "host", "ipc": "host"}
    port = {"target": options.port, "published": str(options.port), "host_ip": options.host}
    return {"ports": [port]}


def _devices(plumbing: Plumbing, options: LaunchOptions) -> dict[str, Any]:
    service: dict[str, Any] = {}
    if plumbing.is_shared_host:
        service |= {"privileged": True, "ulimits": {"memlock": -1}}
    else:
        service["shm_size"] = f"{SHM_GIB}g"
    service["volumes"] = [
        {
            "type": "bind",
            "source": _value(mount.source, options),
            "target": _literal(mount.target),
            "read_only": mount.is_read_only,
            "bind": {"create_host_path": not mount.is_read_only},
        }
        for mount in plumbing.mounts
    ]
    if plumbing.devices:
        service["devices"] = [f"{device}:{device}" for device in plumbing.devices]
    if plumbing.groups:
        service["group_add"] = list(plumbing.groups)
        service["cap_add"] = list(plumbing.capabilities)
    if plumbing.is_unconfined:
        service["security_opt"] = ["seccomp=unconfined"]
    if plumbing.nvidia_devices:
        service["deploy"] = {"resources": {"reservations": {"devices": [_nvidia(plumbing)]}}}
    return service


def _nvidia(plumbing: Plumbing) -> dict[str, Any]:
    chosen = plumbing.nvidia_devices
    if isinstance(chosen, int):
        return {"driver": "nvidia", "count": chosen, "capabilities": ["gpu"]}
    numbers = [str(number) for number in chosen]
    return {"driver": "nvidia", "device_ids": numbers, "capabilities": ["gpu"]}


def _health(plan: Plan, options: LaunchOptions) -> dict[str, Any]:
    return {
        "test": ["CMD", *(_literal(word) for word in health_argv(options.port))],
        "interval": f"{HEALTH_INTERVAL_S}s",
        "timeout": "10s",
        "retries": 3,
        "start_period": f"{start_seconds(plan)}s",
    }
