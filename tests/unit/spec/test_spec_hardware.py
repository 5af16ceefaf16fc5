"""The table of accelerators and the text form of a machine."""

import copy
import random
from typing import Any

import pytest

from m2serve.errors import M2Error, UsageError
from m2serve.spec.hardware import (
    DeviceGroup,
    Hardware,
    accelerator_of_driver,
    find_accelerator,
    hardware_text,
    load_accelerators,
    load_machines,
    parse_hardware,
    read_accelerators,
)
from m2serve.spec.tables import read_toml

GIB = 1 << 30
ARCHS = {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121"}
ARCHS |= {"gfx942", "gfx950", "gfx1151", "ascend-910b", "ascend-910c", "metal", "cpu"}


def document() -> dict[str, Any]:
    return copy.deepcopy(read_toml("hardware.toml"))


def test_every_row_has_a_source_and_a_known_architecture() -> None:
    for row in load_accelerators():
        assert row.source, row.name
        assert row.arch in ARCHS, row.name
        assert row.vendor in ("nvidia", "amd", "ascend", "apple", "cpu"), row.name
        assert row.name == row.name.lower()
        watts = [point[0] for point in row.power_curve]
        assert watts == sorted(set(watts)), row.name
        assert all(0 < share <= 1 for point in row.power_curve for share in point[1:]), row.name


@pytest.mark.parametrize(
    ("name", "gib", "bandwidth", "arch"),
    [
        ("h100", 79.6, 3350, "sm_90"),
        ("h200", 140.4, 4800, "sm_90"),
        ("h20", 95.6, 4000, "sm_90"),
        ("b200", 179.1, 7700, "sm_100"),
        ("b300", 268.6, 7750, "sm_103"),
        ("gb300", 277.5, 8000, "sm_103"),
        ("a100", 80.0, 2039, "sm_80"),
        ("rtx-pro-6000", 95.6, 1792, "sm_120"),
        ("dgx-spark", 119.7, 273, "sm_121"),
        ("mi300x", 192.0, 5300, "gfx942"),
        ("ascend-910c", 61.0, 1600, "ascend-910c"),
        ("epyc-9004", 768, 460.8, "cpu"),
    ],
)
def test_figures(name: str, gib: float, bandwidth: float, arch: str) -> None:
    row = find_accelerator(name)
    assert row.memory_bytes / GIB == pytest.approx(gib, abs=0.06)
    assert row.bandwidth_gb_per_s == bandwidth
    assert row.arch == arch


def test_what_the_kernels_can_do() -> None:
    assert "fp8" not in find_accelerator("a100").native_formats
    assert "fp8" not in find_accelerator("910b3").native_formats
    assert "nvfp4" not in find_accelerator("h200").native_formats
    assert "nvfp4" not in find_accelerator("dgx-spark").native_formats
    assert "nvfp4" in find_accelerator("rtx-pro-6000").native_formats


@pytest.mark.parametrize(
    ("text", "node", "num_nodes", "watts"),
    [
        ("2xrtx-pro-6000", "2xrtx-pro-6000", 1, 0),
        ("1xrtx-pro-6000+2xrtx-4090", "1xrtx-pro-6000+2xrtx-4090", 1, 0),
        (" 2 x RTX Pro 6000 @300W", "2xrtx-pro-6000@300w", 1, 300),
        ("B200", "1xb200", 1, 0),
        ("16xh200", "8xh200", 2, 0),
        ("2xspark", "1xdgx-spark", 2, 0),
        ("2xatlas-800i-a2", "8xascend-910b3", 2, 0),
        ("atlas-800-a3", "16xascend-910c", 1, 0),
        ("xeon-6", "1xxeon-6", 1, 0),
        ("2s-epyc-9005", "1x2s-epyc-9005", 1, 0),
    ],
)
def test_texts(text: str, node: str, num_nodes: int, watts: int) -> None:
    hardware = parse_hardware(text)
    assert hardware_text(hardware) == node
    assert hardware.num_nodes == num_nodes
    assert hardware.power_limit_w == watts
    assert parse_hardware(node, num_nodes) == hardware


def test_any_hardware_survives_its_text() -> None:
    chance = random.Random(11)
    for _ in range(200):
        rows = chance.sample(load_accelerators(), chance.randint(1, 3))
        groups = tuple(DeviceGroup(r, chance.randint(1, r.devices_per_node)) for r in rows)
        hardware = Hardware(groups, 1, chance.choice([0, 250, 600]))
        assert parse_hardware(hardware_text(hardware)) == hardware
        assert len(hardware.devices) == sum(group.count for group in groups)
        assert hardware.is_uniform == (len(rows) == 1)


def test_nodes_are_multiplied() -> None:
    hardware = parse_hardware("8xh200", num_nodes=3)
    assert len(hardware.devices) == 24
    assert parse_hardware("2xatlas-800i-a2", num_nodes=2).num_nodes == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "2x",
        "x",
        "0xh200",
        "-1xh200",
        "9999999xh200",
        "9xh200",
        "2xh300",
        "2xh200@",
        "2xh200@0w",
        "2xh200@w",
        "2xh200@300w@2",
        "1xh200+1xatlas-800-a3",
        "²xh200",
        "２xh200",
        "h" * 300,
    ],
)
def test_bad_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_hardware(text)


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*rtx-pro-6000"):
        parse_hardware("2xrtx-pro-600")
    with pytest.raises(UsageError, match="nodes is 0"):
        parse_hardware("2xh200", num_nodes=0)


def test_machines_are_readable() -> None:
    for machine in load_machines():
        assert parse_hardware(machine.hardware).num_nodes == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA H20-3e", "h20-3e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000-max-q"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA GB10", "dgx-spark"),
        ("AMD Instinct MI300X OAM", "mi300x"),
        ("910B3", "ascend-910b3"),
        ("Ascend910", "ascend-910c"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_driver_names(name: str, row: str | None) -> None:
    found = accelerator_of_driver(name)
    assert (found.name if found else None) == row


def test_broken_tables_are_refused() -> None:
    broken = document()
    del broken["accelerator"][0]["arch"]
    with pytest.raises(M2Error, match=r"hardware\.toml, accelerator 'h100': key 'arch' is missing"):
        read_accelerators(broken)
    broken = document()
    broken["accelerator"][1]["bandwidth_gb_per_s"] = 0
    with pytest.raises(M2Error, match=r"bandwidth_gb_per_s: 0\.0 is not positive"):
        read_accelerators(broken)
    broken = document()
    broken["accelerator"][1]["aliases"] = ["h100"]
    with pytest.raises(M2Error, match="accelerator 'h200': 'h100' is taken"):
        read_accelerators(broken)
