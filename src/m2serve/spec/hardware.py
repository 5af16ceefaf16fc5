"""Accelerators and machines, read from hardware.toml, and the text form of a machine. No torch.

`parse_hardware("2xrtx-pro-6000")`, `"1xrtx-pro-6000+2xrtx-4090"` (mixed), `"8x910b3"`. Figures are
per accelerator: bytes usable by an engine, read bandwidth, dense TFLOPS, link bandwidth one way.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from m2serve.errors import M2Error, UsageError
from m2serve.spec.tables import check_tables, read_rows, read_toml

FILE = "hardware.toml"
MAX_DEVICES = 4096
MAX_TEXT = 200


@dataclass(frozen=True)
class Accelerator:
    """`arch`: sm_80 ... sm_121, gfx942, ascend-910c, ascend-910b, metal, cpu. A figure that is not
    known is 0. `link` names the interconnect, `link_gb_per_s` is one way per device. `is_verified`
    False: the sources disagree or there is one of unknown quality. Tuples name kernel-level facts.
    `power_curve` rows are (watts, share of speed with one user, the same with 64), empty: unknown.
    """

    name: str
    title: str
    vendor: str
    arch: str
    memory_bytes: int
    bandwidth_gb_per_s: float
    bf16_tflops: float
    fp8_tflops: float
    fp4_tflops: float
    int8_tflops: float
    link: str
    link_gb_per_s: float
    native_formats: tuple[str, ...]
    is_unified_memory: bool
    is_verified: bool
    power_w: int
    devices_per_node: int
    source: str
    aliases: tuple[str, ...] = ()
    driver_names: tuple[str, ...] = ()
    power_curve: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True)
class DeviceGroup:
    accelerator: Accelerator
    count: int


@dataclass(frozen=True)
class Hardware:
    """One node's devices in order; `num_nodes` equal nodes. `power_limit_w` 0: the card's own.

    `host_memory_bytes` 0: unknown.
    """

    groups: tuple[DeviceGroup, ...]
    num_nodes: int = 1
    power_limit_w: int = 0
    host_memory_bytes: int = 0

    @property
    def devices(self) -> tuple[Accelerator, ...]:
        """Every device of every node, node by node."""
        one = tuple(g.accelerator for g in self.groups for _ in range(g.count))
        return one * self.num_nodes

    @property
    def is_uniform(self) -> bool:
        return len({group.accelerator.name for group in self.groups}) == 1


@dataclass(frozen=True)
class Machine:
    """A node under a name of its own; `hardware` is a text for `parse_hardware`."""

    name: str
    hardware: str
    source: str


@cache
def load_accelerators() -> tuple[Accelerator, ...]:
    """Every row of hardware.toml; M2Error when the file is wrong."""
    return read_accelerators(read_toml(FILE))


@cache
def load_machines() -> tuple[Machine, ...]:
    """Named nodes of hardware.toml; M2Error when the file is wrong."""
    return read_rows(Machine, read_toml(FILE).get("machine"), f"{FILE}, machine")


def read_accelerators(document: Mapping[str, Any]) -> tuple[Accelerator, ...]:
    """The accelerators of a parsed hardware.toml; names and aliases must differ."""
    check_tables(document, ("accelerator", "machine"), FILE)
    rows = read_rows(
        Accelerator,
        document.get("accelerator"),
        f"{FILE}, accelerator",
        positive=("memory_bytes", "bandwidth_gb_per_s", "devices_per_node"),
    )
    seen: set[str] = set()
    for row in rows:
        for name in (row.name, *row.aliases):
            if name in seen:
                raise M2Error(f"{FILE}, accelerator {row.name!r}: {name!r} is taken")
            seen.add(name)
    return rows


def find_accelerator(name: str) -> Accelerator:
    """By name or alias, in any case; UsageError listing near names."""
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    known = {alias: row for row in load_accelerators() for alias in (row.name, *row.aliases)}
    if wanted in known:
        return known[wanted]
    machines = [machine.name for machine in load_machines()]
    near = difflib.get_close_matches(wanted, [*known, *machines], n=4, cutoff=0.5)
    offer = near or sorted(row.name for row in load_accelerators())
    raise UsageError(f"hardware {name!r} is unknown; did you mean {', '.join(offer)}?")


def accelerator_of_driver(driver_name: str) -> Accelerator | None:
    """The row whose driver name begins `driver_name` ("NVIDIA H200"), the longest one, or None."""
    wanted = driver_name.strip().lower()
    fits = [
        (len(name), row)
        for row in load_accelerators()
        for name in row.driver_names
        if wanted.startswith(name.lower())
    ]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None


def parse_hardware(text: str, num_nodes: int = 1) -> Hardware:
    """`COUNTxNAME` joined by "+", with "@300w" after it for a power cap; UsageError.

    With `num_nodes` 1 a uniform text may name more devices than a node holds: they become equal
    nodes ("16xh200", "2xdgx-spark"). A machine's name counts nodes ("2xatlas-800i-a2").
    """
    if num_nodes < 1 or num_nodes > MAX_DEVICES:
        raise UsageError(f"the number of nodes is {num_nodes}; 1 to {MAX_DEVICES} is needed")
    if len(text) > MAX_TEXT or not text.isascii():
        raise UsageError(f"the hardware text is not up to {MAX_TEXT} ASCII characters")
    devices, _, cap = text.strip().lower().partition("@")
    power_limit_w = _watts(cap, text) if cap or text.rstrip().endswith("@") else 0
    counted = [_counted(part, text) for part in devices.split("+")]
    machines = {machine.name: machine for machine in load_machines()}
    if len(counted) == 1 and counted[0][1] in machines:
        count, name = counted[0]
        node = parse_hardware(machines[name].hardware)
        return Hardware(node.groups, num_nodes * count, power_limit_w)
    groups = tuple(DeviceGroup(find_accelerator(name), count) for count, name in counted)
    return _over_nodes(groups, num_nodes, power_limit_w, text)


def hardware_text(hardware: Hardware) -> str:
    """One node's devices as `parse_hardware` reads them, without host memory and nodes."""
    devices = "+".join(f"{group.count}x{group.accelerator.name}" for group in hardware.groups)
    return f"{devices}@{hardware.power_limit_w}w" if hardware.power_limit_w else devices


def _over_nodes(
    groups: tuple[DeviceGroup, ...], num_nodes: int, power_limit_w: int, text: str
) -> Hardware:
    count, per_node = groups[0].count, groups[0].accelerator.devices_per_node
    if num_nodes == 1 and len(groups) == 1 and count > per_node:
        if count % per_node:
            raise UsageError(
                f"{text!r}: one node holds at most {per_node} {groups[0].accelerator.name}, "
                f"and {count} is not a multiple of it"
            )
        groups, num_nodes = (DeviceGroup(groups[0].accelerator, per_node),), count // per_node
    return Hardware(groups, num_nodes, power_limit_w)


def _counted(part: str, text: str) -> tuple[int, str]:
    """("2xh200" -> (2, "h200"); a name alone counts once)."""
    head, separator, name = part.strip().partition("x")
    if not separator or not head.strip().isdecimal():
        head, name = "1", part
    if not name.strip():
        raise UsageError(f"hardware {text!r} has an empty part; write COUNTxNAME, as in 4xb200")
    if len(head) > 4 or not 1 <= int(head) <= MAX_DEVICES:
        raise UsageError(f"hardware {text!r} counts {head} devices; 1 to {MAX_DEVICES} is needed")
    return int(head), name.strip()


def _watts(cap: str, text: str) -> int:
    digits = cap.strip().removesuffix("w")
    if not digits.isdecimal() or len(digits) > 4 or int(digits) == 0:
        raise UsageError(f"hardware {text!r} has power cap {cap!r}; write watts, as in @300w")
    return int(digits)
