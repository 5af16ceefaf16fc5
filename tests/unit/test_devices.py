"""Texts of the vendors' tools."""

import json
import random

import pytest

from m2serve import devices
from m2serve.devices import (
    Device,
    hardware_of,
    local_hardware,
    parse_npu_smi,
    parse_nvidia_smi,
    parse_rocm_smi,
    processor_hardware,
)
from m2serve.environment import Machine
from m2serve.errors import ResourceError
from m2serve.spec.hardware import hardware_text

MIB, GIB = 1 << 20, 1 << 30

NVIDIA = """\
NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887, 300.00
NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887, 600.00
NVIDIA GeForce RTX 5090, 32607, [N/A]
"""
ROCM = json.dumps(
    {
        "card10": {
            "Card Series": "AMD Instinct MI300X OAM",
            "VRAM Total Memory (B)": "206141652992",
        },
        "card2": {"Card series": "0x74a1", "Card model": "AMD Instinct MI300X"},
        "system": {"Driver version": "6.12"},
    }
)
NPU_A2 = """\
+------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                       |
+---------------------------+---------------+----------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)  |
+===========================+===============+==============================================+
| 0     910B3               | OK            | 93.6        40                0    / 0       |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3365 / 65536   |
+===========================+===============+==============================================+
| 1     910B3               | OK            | 90.1        41                0    / 0       |
| 0                         | 0000:01:00.0  | 0           0    / 0          3365 / 65536   |
+===========================+===============+==============================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)|
| 0       0                 | 4242          | python                   | 3000              |
"""
NPU_A3 = """\
| 0     Ascend910           | OK            | 170.1       37                0    / 0       |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3104 / 65536   |
| 0     Ascend910           | OK            | -           37                0    / 0       |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2889 / 65536   |
"""


def test_nvidia() -> None:
    read = parse_nvidia_smi(NVIDIA)
    assert [device.power_limit_w for device in read] == [300, 600, 0]
    hardware = hardware_of(read, 128 * GIB)
    assert hardware_text(hardware) == "2xrtx-pro-6000+1xrtx-5090@300w"
    assert hardware.host_memory_bytes == 128 * GIB
    assert not hardware.is_uniform


def test_a_device_is_no_larger_than_it_reports() -> None:
    one = hardware_of((Device("NVIDIA H200", 70_000 * MIB),), 0)
    assert one.devices[0].memory_bytes == 70_000 * MIB
    unknown = hardware_of((Device("NVIDIA H200"),), 0)
    assert unknown.devices[0].memory_bytes == 143_771 * MIB
    spark = hardware_of((Device("NVIDIA GB10", 1),), 0)
    assert spark.devices[0].memory_bytes > 100 * GIB


def test_rocm() -> None:
    read = parse_rocm_smi(ROCM)
    assert [device.name for device in read] == ["AMD Instinct MI300X", "AMD Instinct MI300X OAM"]
    assert read[1].memory_bytes == 206_141_652_992
    assert {row.name for row in hardware_of(read, 0).devices} == {"mi300x"}
    assert parse_rocm_smi("WARNING: no devices") == ()
    assert parse_rocm_smi("[]") == ()


def test_npu() -> None:
    assert parse_npu_smi(NPU_A2) == (Device("910B3", 65_536 * MIB),) * 2
    hardware = hardware_of(parse_npu_smi(NPU_A3), 0)
    assert hardware_text(hardware) == "2xascend-910c"


def test_an_unknown_accelerator_is_named() -> None:
    with pytest.raises(ResourceError, match=r"GTX 1080.*--hardware"):
        hardware_of((Device("NVIDIA GeForce GTX 1080"),), 0)


def test_damaged_texts_never_raise() -> None:
    chance = random.Random(3)
    for text, parse in (
        (NVIDIA, parse_nvidia_smi),
        (ROCM, parse_rocm_smi),
        (NPU_A2, parse_npu_smi),
    ):
        for _ in range(300):
            start, end = sorted(chance.sample(range(len(text)), 2))
            cut = text[:start] + chance.choice(["", "|", ",", "{", "９", "\n"]) + text[end:]
            assert isinstance(parse(cut), tuple)


def test_the_processor() -> None:
    machine = Machine("Test CPU", frozenset({"avx512_bf16", "avx512_vnni"}), 8, 64 * GIB, 60 * GIB)
    hardware = processor_hardware(machine)
    assert hardware.devices[0].native_formats == ("bf16", "int8")
    assert hardware.devices[0].memory_bytes == hardware.host_memory_bytes == 64 * GIB


def test_tools_are_asked_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"nvidia-smi": "", "rocm-smi": ROCM, "npu-smi": NPU_A2}
    monkeypatch.setattr(devices, "_output", lambda command: texts[command[0]])
    assert local_hardware().devices[0].name == "mi300x"
    monkeypatch.setattr(devices, "_output", lambda command: "")
    assert local_hardware().devices[0].arch == "cpu"


def test_a_missing_or_failing_tool_says_nothing() -> None:
    assert devices._output(("no-such-tool-of-any-vendor",)) == ""
    assert devices._output(("false",)) == ""
    assert devices._output(("echo", "hello")) == "hello\n"
