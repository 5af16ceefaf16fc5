"""Which accelerators this machine has, from its vendors' tools. No torch.

The parsers are pure: they take a tool's text. `local_hardware` runs the tools, each for at most
five seconds, and falls back to the processor.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from m2serve.environment import Machine, this_machine
from m2serve.errors import ResourceError
from m2serve.spec.hardware import Accelerator, DeviceGroup, Hardware, accelerator_of_driver

TIMEOUT_S = 5
MIB = 1024 * 1024
NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,power.limit",
    "--format=csv,noheader,nounits",
)
ROCM_SMI = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
NPU_SMI = ("npu-smi", "info")


@dataclass(frozen=True)
class Device:
    """One accelerator as its tool names it; 0 for memory or power limit: not told."""

    name: str
    memory_bytes: int = 0
    power_limit_w: int = 0


def local_hardware() -> Hardware:
    """This machine. Raises ResourceError for accelerators that hardware.toml does not have."""
    machine = this_machine()
    tools: tuple[tuple[tuple[str, ...], Callable[[str], tuple[Device, ...]]], ...] = (
        (NVIDIA_SMI, parse_nvidia_smi),
        (ROCM_SMI, parse_rocm_smi),
        (NPU_SMI, parse_npu_smi),
    )
    for command, parse in tools:
        devices = parse(_output(command))
        if devices:
            return hardware_of(devices, machine.memory_bytes)
    return processor_hardware(machine)


def hardware_of(devices: tuple[Device, ...], host_memory_bytes: int) -> Hardware:
    """Devices as rows of hardware.toml with the memory they report, neighbours grouped.

    The power limit is the lowest one below the row's own, else 0.
    """
    rows = [_row(device) for device in devices]
    groups = tuple(DeviceGroup(row, len(list(same))) for row, same in groupby(rows))
    pairs = zip(devices, rows, strict=True)
    caps = [d.power_limit_w for d, row in pairs if 0 < d.power_limit_w < row.power_w]
    return Hardware(groups, 1, min(caps, default=0), host_memory_bytes)


def processor_hardware(machine: Machine) -> Hardware:
    """The processor as one device; its bandwidth and compute are not known (0)."""
    processor = Accelerator(
        name="cpu",
        title=f"{machine.cpu_name}, {machine.num_cores} cores",
        vendor="cpu",
        arch="cpu",
        memory_bytes=machine.memory_bytes,
        bandwidth_gb_per_s=0.0,
        bf16_tflops=0.0,
        fp8_tflops=0.0,
        fp4_tflops=0.0,
        int8_tflops=0.0,
        link="none",
        link_gb_per_s=0.0,
        native_formats=_processor_formats(machine.cpu_flags),
        is_unified_memory=True,
        is_verified=True,
        power_w=0,
        devices_per_node=1,
        source="this machine",
    )
    return Hardware((DeviceGroup(processor, 1),), 1, 0, machine.memory_bytes)


def parse_nvidia_smi(text: str) -> tuple[Device, ...]:
    """`name, MiB, watts` a line, as NVIDIA_SMI prints it; "[N/A]" is not told."""
    devices = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[0].upper().startswith(("NVIDIA", "TESLA")):
            devices.append(Device(fields[0], _whole(fields[1]) * MIB, _whole(fields[2])))
    return tuple(devices)


def parse_rocm_smi(text: str) -> tuple[Device, ...]:
    """ROCM_SMI's JSON: an object of cards; keys differ between releases in case and wording."""
    try:
        cards = json.loads(text)
    except ValueError:
        return ()
    if not isinstance(cards, dict):
        return ()
    numbered = [
        (int(key.removeprefix("card")), card)
        for key, card in cards.items()
        if key.startswith("card") and key[4:].isdecimal() and isinstance(card, dict)
    ]
    return tuple(_rocm_card(card) for _, card in sorted(numbered, key=lambda pair: pair[0]))


def parse_npu_smi(text: str) -> tuple[Device, ...]:
    """NPU_SMI's table: a line with number and name, then a line with memory for each die."""
    devices = []
    name = ""
    for line in text.splitlines():
        cells = [cell.split() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 3 or not cells[0] or not cells[0][0].isdecimal() or not cells[1]:
            continue
        if ":" in cells[1][0]:
            total = cells[2][-1] if cells[2] else ""
            devices.append(Device(name, _whole(total) * MIB))
        elif len(cells[0]) >= 2:
            name = cells[0][1]
    return tuple(device for device in devices if device.name)


def _rocm_card(card: dict[str, object]) -> Device:
    plain = {str(key).lower(): str(value) for key, value in card.items()}
    names = (plain.get(key, "") for key in ("card series", "card model", "device name"))
    name = next((n for n in names if n and not n.startswith("0x")), "AMD GPU of unknown name")
    return Device(name, _whole(plain.get("vram total memory (b)", "0")))


def _row(device: Device) -> Accelerator:
    row = accelerator_of_driver(device.name)
    if row is None:
        raise ResourceError(
            f"accelerator {device.name!r} is not in hardware.toml; name a machine with --hardware"
        )
    if row.is_unified_memory or not device.memory_bytes:
        return row
    return dataclasses.replace(row, memory_bytes=min(row.memory_bytes, device.memory_bytes))


def _processor_formats(flags: frozenset[str]) -> tuple[str, ...]:
    has_bf16 = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    has_int8 = bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"})
    return (("bf16",) if has_bf16 else ()) + (("int8",) if has_int8 else ())


def _output(command: tuple[str, ...]) -> str:
    """What the tool prints, "" when it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _whole(text: str) -> int:
    head = text.partition(".")[0].strip()
    return int(head) if head.isdecimal() and len(head) <= 16 else 0
