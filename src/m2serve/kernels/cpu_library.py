"""The compiled CPU kernels: the library is found, loaded with ctypes, and says what it runs on.

CMake puts it beside the sources it is made of. Without a compiler at install, or on a CPU without
AVX2, there is none, and PyTorch computes.

The kernels are written for AVX2, for AVX-512 with VNNI and BF16, and for AMX with BF16: the AVX-512
kernels, with tile registers for matrix products of many rows.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import m2serve.kernels
from m2serve.errors import UsageError
from m2serve.kernels.cpu_structs import STRUCTURES
from m2serve.kernels.cpu_topology import NumaNode, spread_threads, this_machines_nodes

_FILE_NAME = "libm2cpu.so"
_ISAS = ("amx", "avx512", "avx2", "none")
# kAbi of cpu/api_matmul.cpp: one more whenever a function, or what lies in memory, changes meaning.
ABI = 4


@dataclass(frozen=True)
class CpuLibrary:
    path: Path
    isa: str  # amx, avx512 or avx2
    functions: ctypes.CDLL
    nodes: tuple[NumaNode, ...] = ()

    def find_nan(self, weight: ctypes.Structure) -> int | None:
        """The first row of an m2_weight with a NaN among its codes, counted over its matrices."""
        self.follow_torch_threads()
        find = self.functions.m2_find_nan
        find.restype = ctypes.c_int64
        row = int(find(ctypes.byref(weight)))
        return row if row >= 0 else None

    def follow_torch_threads(self) -> None:
        """Give the library's pool as many threads as PyTorch uses, bound to their NUMA nodes."""
        num_threads = torch.get_num_threads()
        seats = _seats(self.nodes, num_threads) if len(self.nodes) > 1 else ()
        if seats:
            self.functions.m2_seat_threads(*seats)
        else:
            self.functions.m2_set_num_threads(num_threads)


@cache
def _seats(nodes: tuple[NumaNode, ...], num_threads: int) -> tuple[object, ...]:
    """The arguments of m2_seat_threads; none when all threads are on one node."""
    chosen = spread_threads(nodes, num_threads)
    if not chosen:
        return ()
    cpus = [cpu for node in chosen for cpu in node.cpus]
    per_node = ctypes.c_int32 * len(chosen)
    return (
        len(chosen),
        per_node(*(node.num_threads for node in chosen)),
        per_node(*(len(node.cpus) for node in chosen)),
        (ctypes.c_int32 * len(cpus))(*cpus),
    )


@cache
def load_cpu_library() -> CpuLibrary | None:
    """None where there is no library, or none for this CPU; `M2_CPU_ISA=none` asks for that.

    `M2_CPU_ISA=avx2`, `avx512` or `amx` allows that one only. `M2_CPU_LIBRARY` is the path of a
    library to load instead of the installed one. Both are read once; raises UsageError for a value
    that is neither an instruction set nor a library, and for one this CPU does not have.
    """
    isa_asked = os.environ.get("M2_CPU_ISA")
    if isa_asked is not None and isa_asked not in _ISAS:
        raise UsageError(f"M2_CPU_ISA is {isa_asked!r}; allowed: {', '.join(_ISAS)}, or unset")
    path = find_cpu_library()
    lacking = "no library was built"
    if path is not None:
        functions = _load(path)
        isa = functions.m2_isa()
        if isa is not None:
            return CpuLibrary(path, isa.decode(), functions, this_machines_nodes())
        lacking = f"this CPU, or {path.name}, does not have it"
    if isa_asked not in (None, "none"):
        raise UsageError(f"M2_CPU_ISA is {isa_asked!r}, but {lacking}; unset it")
    return None


def _load(path: Path) -> ctypes.CDLL:
    """Raises UsageError for a file that is no library, or one of another version."""
    try:
        functions = ctypes.CDLL(str(path))
        functions.m2_isa.restype = ctypes.c_char_p
        problem = _difference(functions)
    except (OSError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise UsageError(
            f"{path} is no library of CPU kernels that fits this version of m2serve ({problem}); "
            "install the package again, or unset M2_CPU_LIBRARY if it names that file"
        )
    return functions


def _difference(functions: ctypes.CDLL) -> str:
    """Where the library was built of other sources than these modules belong to; or nothing."""
    found = (ctypes.c_int64 * (1 + len(STRUCTURES)))()
    functions.m2_abi.restype = ctypes.c_int64
    count = functions.m2_abi(found, ctypes.c_int64(len(found)))
    if found[0] != ABI or count != len(found):
        return f"its interface is number {found[0]}, not {ABI}"
    for structure, size in zip(STRUCTURES, found[1:], strict=True):
        if ctypes.sizeof(structure) != size:
            return f"its {structure.__name__} has {size} bytes, not {ctypes.sizeof(structure)}"
    return ""


def find_cpu_library() -> Path | None:
    """Where the library lies, if it was built; raises UsageError as `load_cpu_library`."""
    asked = os.environ.get("M2_CPU_LIBRARY")
    if asked is not None:
        path = Path(asked)
        if not path.is_file():
            raise UsageError(f"M2_CPU_LIBRARY is {asked!r}, which is no file; build or unset it")
        return path.absolute()
    places = (Path(place) / "cpu" / _FILE_NAME for place in m2serve.kernels.__path__)
    return next((place for place in places if place.is_file()), None)


def describe_cpu_kernels() -> str:
    """One line for people: what computes on the CPU, and what is lost if it is PyTorch."""
    library = load_cpu_library()
    if library is not None:
        nodes = f", {len(library.nodes)} NUMA nodes" if len(library.nodes) > 1 else ""
        return f"CPU kernels: {library.isa}{nodes}"
    if find_cpu_library() is None:
        reason = "none were built: they need Linux on x86-64 and a C++ compiler at installation"
    else:
        reason = "no kernels for this CPU, which needs AVX2, or M2_CPU_ISA excludes them"
    return f"CPU kernels: PyTorch, many times slower for quantised weights ({reason})"
