"""With and without a compiled library, and what is said about it."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from m2serve.environment import this_machine
from m2serve.errors import UsageError
from m2serve.kernels import cpu_library, reference
from m2serve.kernels.cpu_library import (
    CpuLibrary,
    describe_cpu_kernels,
    find_cpu_library,
    load_cpu_library,
)
from m2serve.kernels.cpu_topology import NumaNode
from m2serve.kernels.dispatch import select_kernels


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What is loaded in the test is forgotten after it."""
    load_cpu_library.cache_clear()
    yield monkeypatch
    load_cpu_library.cache_clear()


def test_without_a_library_pytorch_computes(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(cpu_library, "find_cpu_library", lambda: None)
    assert load_cpu_library() is None
    assert select_kernels(torch.device("cpu")).linear is reference.linear
    line = describe_cpu_kernels()
    assert "PyTorch" in line
    assert "compiler" in line
    assert "\n" not in line


@pytest.mark.skipif(find_cpu_library() is None, reason="no library was built")
@pytest.mark.parametrize("isa", ["amx", "avx512", "avx2", "none"])
def test_the_instruction_set_can_be_forced(isa: str) -> None:
    code = "from m2serve.kernels.cpu_library import *; print(describe_cpu_kernels())"
    environment = {"M2_CPU_ISA": isa, "PATH": "/usr/bin:/bin"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    flags = this_machine().cpu_flags
    has_it = {"avx2": "avx2", "avx512": "avx512_bf16", "amx": "amx_bf16"}.get(isa) in flags
    if isa == "none":
        assert "PyTorch" in told.stdout
    elif told.returncode == 0:
        assert has_it
        assert f"CPU kernels: {isa}" in told.stdout
    else:
        assert isa == "amx" or not has_it  # compilers, and systems, may refuse tiles
        assert f"M2_CPU_ISA is '{isa}', but this CPU" in told.stderr


@pytest.mark.parametrize("isa", ["avx", "AVX2", "", "AMX"])
def test_an_unknown_instruction_set_is_refused(fresh: pytest.MonkeyPatch, isa: str) -> None:
    fresh.setenv("M2_CPU_ISA", isa)
    with pytest.raises(
        UsageError, match=f"M2_CPU_ISA is '{isa}'; allowed: amx, avx512, avx2, none"
    ):
        load_cpu_library()


def test_a_library_that_is_not_there_is_refused(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.so", tmp_path):
        fresh.setenv("M2_CPU_LIBRARY", str(path))
        with pytest.raises(UsageError, match=r"M2_CPU_LIBRARY is .*, which is no file"):
            load_cpu_library()


def test_a_file_that_is_no_library_is_refused(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("no library\n")
    fresh.setenv("M2_CPU_LIBRARY", str(path))
    with pytest.raises(UsageError, match=r"text\.so is no library of CPU kernels"):
        load_cpu_library()


@pytest.mark.skipif(find_cpu_library() is None, reason="no library was built")
def test_a_library_of_another_version_is_refused(fresh: pytest.MonkeyPatch) -> None:
    with fresh.context() as changed:
        changed.setattr(cpu_library, "ABI", 99)
        with pytest.raises(UsageError, match=r"interface is number \d+, not 99\); install"):
            load_cpu_library()

    class CpuWeight(ctypes.Structure):
        _fields_ = (("format", ctypes.c_int32),)

    fresh.setattr(cpu_library, "STRUCTURES", (CpuWeight, *cpu_library.STRUCTURES[1:]))
    with pytest.raises(UsageError, match=r"its CpuWeight has \d+ bytes, not 4\)"):
        load_cpu_library()


@pytest.mark.skipif(load_cpu_library() is None, reason="no native kernels here")
def test_a_system_without_more_threads_computes_with_those_there_are() -> None:
    code = """
import os, resource, torch
from m2serve.kernels.cpu_sample import make_cpu_sampler
torch.set_num_threads(1)
logits = torch.arange(70000.0).repeat(9, 1)
torch.set_num_threads(64)
sampler = make_cpu_sampler()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
resource.setrlimit(resource.RLIMIT_AS, (used + 4 * stack, resource.RLIM_INFINITY))
before = len(os.listdir("/proc/self/task"))
print(sampler.choose(logits, [(1.0, 0.0, 1, 1.0, 0.0)] * 9))
assert len(os.listdir("/proc/self/task")) - before < 63, "every thread was started"
"""
    command = ["bash", "-c", f'ulimit -s 8192; exec {shlex.quote(sys.executable)} -c "$0"', code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([69999] * 9)


@pytest.mark.skipif(find_cpu_library() is None, reason="no library was built")
def test_a_library_of_ones_own(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = find_cpu_library()
    assert installed is not None
    path = tmp_path / "mine.so"
    path.symlink_to(installed)
    fresh.setenv("M2_CPU_LIBRARY", str(path))
    assert find_cpu_library() == path
    library = load_cpu_library()
    assert library is None or library.path == path


def test_nodes_are_named_where_there_are_several(fresh: pytest.MonkeyPatch) -> None:
    nodes = (NumaNode(0, (0,)), NumaNode(1, (1,)))
    library = CpuLibrary(Path("libm2cpu.so"), "avx2", ctypes.CDLL(None), nodes)
    fresh.setattr(cpu_library, "load_cpu_library", lambda: library)
    assert describe_cpu_kernels() == "CPU kernels: avx2, 2 NUMA nodes"


def test_threads_are_seated_only_where_there_are_several_nodes(fresh: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    functions = SimpleNamespace(
        m2_set_num_threads=lambda count: calls.append((count,)),
        m2_seat_threads=lambda count, threads, num_cpus, cpus: calls.append(
            (count, list(threads), list(num_cpus), list(cpus))
        ),
    )
    fresh.setattr(torch, "get_num_threads", lambda: 6)
    two = (NumaNode(0, (0, 1, 4, 5)), NumaNode(1, (2, 3)))
    for nodes in ((), two[:1], two):
        CpuLibrary(Path("x"), "avx2", functions, nodes).follow_torch_threads()  # type: ignore[arg-type]
    assert calls == [(6,), (6,), (2, [4, 2], [4, 2], [0, 1, 4, 5, 2, 3])]
