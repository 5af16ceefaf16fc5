"""What this machine is, as far as this process may use it. No torch.

A container sees the host's processors and memory but may use fewer: the CPU affinity and the
limits of every control group (version 2) from the process's own up to the root count.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CPU_ROOT = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """`num_cores`: physical cores this process may use, at least 1. `memory_bytes`: what it may
    hold at most; `available_memory_bytes`: what of it can be taken now without swapping.
    `cpu_flags`: instruction sets by Linux's names ("avx2"); empty elsewhere.
    """

    cpu_name: str
    cpu_flags: frozenset[str]
    num_cores: int
    memory_bytes: int
    available_memory_bytes: int


def this_machine() -> Machine:
    """Look at the machine now; what cannot be read counts as unlimited."""
    groups = list(_own_cgroups(_CGROUP_ROOT, Path("/proc/self/cgroup")))
    memory = psutil.virtual_memory()
    cpu = cpu_facts(Path("/proc/cpuinfo"))
    return Machine(
        cpu_name=cpu.get("model name", platform.machine()),
        cpu_flags=frozenset((cpu.get("flags") or cpu.get("Features", "")).split()),
        num_cores=num_cores(usable_cpus(), groups),
        memory_bytes=memory_limit_bytes(memory.total, groups),
        available_memory_bytes=available_bytes(memory.available, groups),
    )


def ask_for_huge_pages() -> None:
    """Let PyTorch ask the kernel for huge pages for large tensors, unless somebody said otherwise.

    A decoding step reads weights from all over the memory; with pages of 4 KiB it waits for page
    tables, too. Only before this process has made its first tensor; for programs whose process is
    ours, because it is a variable of the environment.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def num_cores(cpus: Iterable[int], groups: Iterable[Path], cpu_root: Path = _CPU_ROOT) -> int:
    """Physical cores behind these logical processors, cut by the groups' CPU quotas."""
    cores = len(one_cpu_a_core(cpus, cpu_root))
    for group in groups:
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, -(-int(quota) // int(period)))
    return max(cores, 1)


def memory_limit_bytes(total_bytes: int, groups: Iterable[Path]) -> int:
    """The machine's memory, cut by the groups' limits."""
    limits = [_read(group / "memory.max") for group in groups]
    return min([total_bytes, *(int(limit) for limit in limits if limit.isdigit())])


def available_bytes(free_bytes: int, groups: Iterable[Path]) -> int:
    """The machine's available memory, cut by what each group's limit leaves.

    Pages of files can be dropped, so they count as available: a checkpoint just downloaded is no
    reason not to load it.
    """
    for group in groups:
        limit, current = _read(group / "memory.max"), _read(group / "memory.current")
        if limit.isdigit() and current.isdigit():
            left = int(limit) - int(current) + _file_page_bytes(group)
            free_bytes = min(free_bytes, max(left, 0))
    return free_bytes


def one_cpu_a_core(cpus: Iterable[int], cpu_root: Path = _CPU_ROOT) -> tuple[int, ...]:
    """Of these logical processors the first of each physical core, in order."""
    first: dict[tuple[str, str], int] = {}
    for cpu in sorted(cpus):
        first.setdefault(_core_of(cpu, cpu_root), cpu)
    return tuple(first.values())


def cpu_facts(cpuinfo: Path) -> dict[str, str]:
    """What Linux says about the first processor."""
    first = _read(cpuinfo).split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def usable_cpus() -> Iterable[int]:
    """Numbers of the logical processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def _core_of(cpu: int, cpu_root: Path) -> tuple[str, str]:
    """(socket, core); a processor whose place is not told is a core of its own."""
    topology = cpu_root / f"cpu{cpu}" / "topology"
    core = _read(topology / "core_id")
    return (_read(topology / "physical_package_id"), core) if core else ("", f"cpu{cpu}")


def _own_cgroups(root: Path, membership: Path) -> Iterator[Path]:
    own = next((s[3:] for s in _read(membership).splitlines() if s.startswith("0::")), "/")
    group = root / own.strip("/")
    while group != root and root in group.parents:
        yield group
        group = group.parent
    yield root


def _file_page_bytes(group: Path) -> int:
    pairs = (line.partition(" ") for line in _read(group / "memory.stat").splitlines())
    names = ("inactive_file", "active_file")
    return sum(int(value) for name, _, value in pairs if name in names and value.isdigit())


def last_cache_bytes(cpu_root: Path = _CPU_ROOT) -> int:
    """Of all caches of the highest level together; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for folder in cpu_root.glob("cpu*/cache/index*"):
        level = _read(folder / "level")
        if level.isdecimal():
            shared = int(level), _read(folder / "shared_cpu_list")
            caches[shared] = parse_size(_read(folder / "size"))
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def parse_size(text: str) -> int:
    """Linux's "32K" or "4M" as bytes; 0 for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})([KM]?)\s*", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]] if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
