"""Where and how a plan is started: what the plan leaves open."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Literal

from m2serve.errors import UsageError
from m2serve.launch.placeholders import placeholders_in
from m2serve.records import Plan
from m2serve.spec.hardware import Hardware, parse_hardware

MAX_TEXT = 4096
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_NIC = re.compile(r"[A-Za-z0-9_.,=:-]{1,64}")


@dataclass(frozen=True)
class LaunchOptions:
    """`host` is the address that clients reach, by default this machine's alone. `node_ips` has one
    address for each node and `nic` the interface that joins them; left out, they stay variables of
    the text. `devices` are the numbers of the accelerators on each node, () the first ones.
    `hub` is where weights are downloaded from, `cache_dir` the host's folder in which containers
    keep them ("": the hub's own). `with_reasons`: comments say why each setting is there.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    node_ips: tuple[str, ...] = ()
    nic: str = ""
    devices: tuple[int, ...] = ()
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    cache_dir: str = ""
    with_reasons: bool = True


DEFAULTS = LaunchOptions()


def placed(plan: Plan, options: LaunchOptions) -> LaunchOptions:
    """With the plan's devices where no others were chosen."""
    return options if options.devices else replace(options, devices=plan.devices)


def hardware_of(plan: Plan) -> Hardware:
    return parse_hardware(plan.hardware, plan.num_nodes)


def devices_per_node(plan: Plan) -> int:
    return sum(group.count for group in hardware_of(plan).groups)


def devices_per_server(plan: Plan) -> int:
    """On one node; each of several replicas has a share."""
    return devices_per_node(plan) // plan.num_replicas


def check_options(plan: Plan, options: LaunchOptions) -> None:
    """Raises UsageError for what cannot be meant, or would mean something else in a command."""
    _check_text("model", plan.model)
    _check_text("cache_dir", options.cache_dir)
    if not plan.model or plan.model.startswith("-"):
        raise UsageError(f"the model {plan.model!r} reads as an option; write ./ before a folder")
    if options.cache_dir and not options.cache_dir.startswith("/"):
        raise UsageError(f"cache_dir {options.cache_dir!r} must begin with /")
    if not 1 <= options.port <= 65535:
        raise UsageError(f"the port is {options.port}; 1 to 65535 is needed")
    if not _HOST.fullmatch(options.host) and not _is_address(options.host):
        raise UsageError(f"the host {options.host!r} is neither a name nor an address")
    if options.nic and not _NIC.fullmatch(options.nic):
        raise UsageError(f"the interface {options.nic!r} is not a name such as eth0")
    _check_nodes(plan, options)


def _check_nodes(plan: Plan, options: LaunchOptions) -> None:
    if options.node_ips and len(options.node_ips) != plan.num_nodes:
        given, needed = len(options.node_ips), plan.num_nodes
        raise UsageError(f"{given} node addresses for {needed} nodes; one each is needed")
    for address in options.node_ips:
        if not _is_address(address):
            raise UsageError(f"the node address {address!r} is not an IP address")
    count = devices_per_node(plan)
    chosen = options.devices
    if chosen and (len(set(chosen)) != count or len(chosen) != count or min(chosen) < 0):
        text = ",".join(str(device) for device in chosen)
        raise UsageError(f"devices {text}: the plan needs {count} different ones on each node")


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_TEXT or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise UsageError(f"{name} {text[:80]!r} has control characters or is over {MAX_TEXT} long")
    if held := placeholders_in((text,)):
        raise UsageError(f"{name} {text!r} holds {{{min(held)}}}, which a launch would replace")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
