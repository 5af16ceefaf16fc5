import subprocess
import sys
from pathlib import Path

import pytest

from m2serve.environment import (
    _own_cgroups,
    available_bytes,
    memory_limit_bytes,
    num_cores,
    this_machine,
)


def cpu_tree(root: Path, cores: dict[int, tuple[int, int]]) -> Path:
    """`cores`: processor -> (socket, core)."""
    for cpu, (package, core) in cores.items():
        topology = root / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "core_id").write_text(f"{core}\n")
    return root


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")
    return folder


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    cores = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (0, 0), 5: (0, 1)}
    root = cpu_tree(tmp_path, cores)
    assert num_cores(range(6), [], root) == 4
    assert num_cores([0, 4], [], root) == 1
    assert num_cores([0, 4, 99], [], root) == 2, "a processor without topology is a core"
    assert num_cores([], [], root) == 1


@pytest.mark.parametrize(
    ("cpu_max", "wanted"),
    [("max 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("800000 100000", 4), ("", 4)],
)
def test_a_quota_of_processor_time_cuts_the_cores(
    tmp_path: Path, cpu_max: str, wanted: int
) -> None:
    root = cpu_tree(tmp_path / "cpu", {cpu: (0, cpu) for cpu in range(4)})
    assert num_cores(range(4), [group(tmp_path / "g", cpu_max=cpu_max)], root) == wanted


def test_the_tightest_memory_limit_counts(tmp_path: Path) -> None:
    outer = group(tmp_path / "a", memory_max="1000", memory_current="900", memory_stat="anon 1\n")
    (outer / "memory.stat").write_text("anon 700\ninactive_file 150\nactive_file 100\nfile 400\n")
    inner = group(tmp_path / "a" / "b", memory_max="max", memory_current="5")
    assert memory_limit_bytes(5000, [inner, outer]) == 1000
    assert available_bytes(4000, [inner, outer]) == 350
    assert available_bytes(200, [inner, outer]) == 200
    group(outer, memory_current="1900")
    assert available_bytes(4000, [outer]) == 0
    assert available_bytes(4000, [tmp_path / "none"]) == 4000


def test_every_group_up_to_the_root_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("1:name=systemd:/x\n0::/a/b\n")
    root = tmp_path / "fs"
    assert list(_own_cgroups(root, membership)) == [root / "a" / "b", root / "a", root]
    membership.write_text("0::/\n")
    assert list(_own_cgroups(root, membership)) == [root]
    membership.write_text("0::/../other\n")
    assert list(_own_cgroups(root, membership))[-1] == root
    assert list(_own_cgroups(root, tmp_path / "none")) == [root]


def test_this_machine_has_something() -> None:
    machine = this_machine()
    assert machine.num_cores >= 1
    assert 0 < machine.available_memory_bytes <= machine.memory_bytes


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALLOCATE = """
import sys
from m2serve.environment import ask_for_huge_pages
if sys.argv[1] == "ask":
    ask_for_huge_pages()
import torch
keep = torch.zeros(1 << 24)
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if "AnonHuge" in line))
"""


@pytest.mark.skipif(
    not HUGE.exists() or "[madvise]" not in HUGE.read_text(),
    reason="huge never or always",
)
def test_large_tensors_get_huge_pages_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def huge_kib(word: str) -> int:
        command = [sys.executable, "-c", ALLOCATE, word]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert huge_kib("ask") > 32 * 1024
    assert huge_kib("leave") == 0
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert huge_kib("ask") == 0
