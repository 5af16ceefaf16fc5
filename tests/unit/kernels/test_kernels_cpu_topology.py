"""NUMA nodes read from made-up system folders, and the threads they get."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2serve.kernels.cpu_topology import (
    MAX_THREADS,
    NodeThreads,
    NumaNode,
    numa_nodes,
    parse_cpu_list,
    spread_threads,
)


def write_nodes(folder: Path, lists: Mapping[int, str]) -> Path:
    """A folder like /sys/devices/system/node: number -> cpulist."""
    for number, cpus in lists.items():
        node = folder / f"node{number}"
        node.mkdir()
        (node / "cpulist").write_text(f"{cpus}\n")
    for name in ("has_cpu", "online", "possible"):
        (folder / name).write_text("0-1\n")
    return folder


def two_sockets(folder: Path, nodes_per_socket: int = 1) -> Path:
    """Of 64 2-way threaded cores, numbered as Linux does: all first threads, then all second."""
    each = 64 // nodes_per_socket
    firsts = range(0, 128, each)
    lists = [f"{cpu}-{cpu + each - 1},{cpu + 128}-{cpu + 128 + each - 1}" for cpu in firsts]
    return write_nodes(folder, dict(enumerate(lists)))


def test_two_sockets(tmp_path: Path) -> None:
    first, second = numa_nodes(two_sockets(tmp_path), range(256))
    assert first == NumaNode(0, (*range(64), *range(128, 192)))
    assert second == NumaNode(1, (*range(64, 128), *range(192, 256)))
    assert [part.num_threads for part in spread_threads((first, second), 128)] == [64, 64]


def test_four_nodes_a_socket(tmp_path: Path) -> None:
    nodes = numa_nodes(two_sockets(tmp_path, nodes_per_socket=4), range(256))
    assert [node.number for node in nodes] == list(range(8))
    assert spread_threads(nodes, 128) == tuple(NodeThreads(16, node.cpus) for node in nodes)


def test_twelve_nodes_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    nodes = numa_nodes(write_nodes(tmp_path, {n: f"{n}" for n in range(12)}), range(12))
    assert [node.number for node in nodes] == list(range(12))


def test_offline_cores_are_in_no_list(tmp_path: Path) -> None:
    nodes = numa_nodes(write_nodes(tmp_path, {0: "0-1,3", 1: "4,6-7"}), {0, 1, 3, 4, 6, 7})
    assert nodes == (NumaNode(0, (0, 1, 3)), NumaNode(1, (4, 6, 7)))


def test_a_control_group_leaves_some_processors(tmp_path: Path) -> None:
    nodes = numa_nodes(two_sockets(tmp_path), {1, 3, 129, 130, 64})
    assert nodes == (NumaNode(0, (1, 3, 129, 130)), NumaNode(1, (64,)))
    assert [part.num_threads for part in spread_threads(nodes, 5)] == [4, 1]


def test_a_control_group_on_one_socket_is_one_node(tmp_path: Path) -> None:
    nodes = numa_nodes(two_sockets(tmp_path), range(64))
    assert nodes == (NumaNode(0, tuple(range(64))),)
    assert spread_threads(nodes, 64) == ()


def test_a_node_of_memory_alone_is_none_of_ours(tmp_path: Path) -> None:
    nodes = numa_nodes(write_nodes(tmp_path, {0: "0-1", 1: "2-3", 2: ""}), range(4))
    assert [node.number for node in nodes] == [0, 1]


@pytest.mark.parametrize(
    "lists",
    [{}, {0: "0-1"}, {0: "0-1", 1: "2"}, {0: "0-3", 1: "2-3"}, {0: "0-1", 1: "two to three"}],
    ids=str,
)
def test_what_the_system_does_not_tell_is_not_guessed(
    tmp_path: Path, lists: dict[int, str]
) -> None:
    """No list, a processor in none, a processor in two, a list that is none."""
    assert numa_nodes(write_nodes(tmp_path, lists), range(4)) == ()


def test_without_a_folder_there_are_no_nodes(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path / "nowhere", range(4)) == ()


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("", set()),
        ("5", {5}),
        ("3-1", set()),
        ("0-1,x,-4,7-", {0, 1}),
        ("9999999-99999999", set()),
    ],
)
def test_lists_of_processors(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


def test_a_list_cannot_fill_the_memory() -> None:
    assert len(parse_cpu_list("0-999999")) <= (1 << 16) + 1


@given(st.lists(st.integers(1, 128), min_size=1, max_size=9), st.integers(1, 300))
def test_threads_are_spread_fairly(sizes: list[int], num_threads: int) -> None:
    nodes = [NumaNode(i, tuple(range(1000 * i, 1000 * i + n))) for i, n in enumerate(sizes)]
    chosen = spread_threads(nodes, num_threads)
    num_threads = min(num_threads, MAX_THREADS)
    fair = {node.cpus: num_threads * len(node.cpus) / sum(sizes) for node in nodes}
    if not chosen:
        assert num_threads - max(fair.values()) < 1
        return
    assert len(chosen) > 1
    assert sum(part.num_threads for part in chosen) == num_threads
    for part in chosen:
        assert part.num_threads >= 1
        assert abs(part.num_threads - fair[part.cpus]) < 1
