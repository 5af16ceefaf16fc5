"""Which processors share memory, and how many threads of the native library each such node gets.

On a machine of several NUMA nodes the pool's threads are bound to the processors of their node,
every node computes its own share of the rows of each matrix, and those rows are moved into its
memory (cpu/place.h). Not measured on a machine of several sockets: there was none; tests run it
with made-up nodes. `numastat -p PID` shows where the pages are. The KV cache lies where it is first
written.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

# kMaxThreads of cpu/pool.h and kMaxNodes of cpu/split.h.
MAX_THREADS = 128
MAX_NODES = 64
_MAX_CPUS = 1 << 16

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True)
class NumaNode:
    """`cpus`: the logical processors of it that this process may use, in order."""

    number: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class NodeThreads:
    """`num_threads` threads, at least one, on the processors `cpus`."""

    num_threads: int
    cpus: tuple[int, ...]


def this_machines_nodes() -> tuple[NumaNode, ...]:
    """Of the processors that affinity, and so the control group's cpuset, leaves this process."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return numa_nodes(SYSTEM / "node", os.sched_getaffinity(0))


def numa_nodes(folder: Path, usable: Collection[int]) -> tuple[NumaNode, ...]:
    """The nodes that hold `usable` processors, read from a folder like /sys/devices/system/node.

    Empty when it does not say of every one where it is.
    """
    nodes = []
    for path in folder.glob("node*"):
        number = path.name.removeprefix("node")
        cpus = parse_cpu_list(_read(path / "cpulist")) & set(usable)
        if number.isdecimal() and cpus:
            nodes.append(NumaNode(int(number), tuple(sorted(cpus))))
    found = [cpu for node in nodes for cpu in node.cpus]
    if sorted(found) != sorted(set(usable)) or len(nodes) > MAX_NODES:
        return ()
    return tuple(sorted(nodes, key=lambda node: node.number))


def parse_cpu_list(text: str) -> frozenset[int]:
    """Linux's notation: "0-3,8" is 0, 1, 2, 3 and 8. What is no such range is skipped."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        if match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            cpus.update(range(first, min(last, _MAX_CPUS) + 1))
    return frozenset(cpus)


def spread_threads(nodes: Sequence[NumaNode], num_threads: int) -> tuple[NodeThreads, ...]:
    """Each node's threads, by its number of processors; empty where all would be on one node.

    A thread may use all processors of its node, so that two servers on one machine do not end up
    on the same cores.
    """
    num_threads = min(num_threads, MAX_THREADS)
    total = sum(len(node.cpus) for node in nodes)
    ends = itertools.accumulate(len(node.cpus) for node in nodes)
    borders = [0, *(num_threads * end // total for end in ends)]
    counts = [end - start for start, end in itertools.pairwise(borders)]
    taken = [NodeThreads(n, node.cpus) for n, node in zip(counts, nodes, strict=True) if n]
    return tuple(taken) if len(taken) > 1 else ()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
