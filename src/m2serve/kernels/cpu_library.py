"""The compiled CPU kernels: the library is found, loaded with ctypes, and says what it runs on.

CMake puts it beside the sources it is made of. Without a compiler at install, or on a CPU without
AVX2, there is none, and PyTorch computes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import m2serve.kernels

_FILE_NAME = "libm2cpu.so"


@dataclass(frozen=True)
class CpuLibrary:
    path: Path
    isa: str  # avx512 or avx2
    functions: ctypes.CDLL

    def follow_torch_threads(self) -> None:
        """Give the library's pool as many threads as PyTorch uses."""
        self.functions.m2_set_num_threads(torch.get_num_threads())


@cache
def load_cpu_library() -> CpuLibrary | None:
    """None where there is no library, or none for this CPU; `M2_CPU_ISA=none` asks for that.

    `M2_CPU_ISA=avx2` or `avx512` allows that one only. Read once.
    """
    path = find_cpu_library()
    if path is None:
        return None
    functions = ctypes.CDLL(str(path))
    functions.m2_isa.restype = ctypes.c_char_p
    isa = functions.m2_isa()
    return None if isa is None else CpuLibrary(path, isa.decode(), functions)


def find_cpu_library() -> Path | None:
    """Where the library lies, if it was built."""
    places = (Path(place) / "cpu" / _FILE_NAME for place in m2serve.kernels.__path__)
    return next((place for place in places if place.is_file()), None)


def describe_cpu_kernels() -> str:
    """One line for people: what computes on the CPU, and what is lost if it is PyTorch."""
    library = load_cpu_library()
    if library is not None:
        return f"CPU kernels: {library.isa}"
    if find_cpu_library() is None:
        reason = "the package was installed without a C++ compiler"
    else:
        reason = "no kernels for this CPU, which needs AVX2, or M2_CPU_ISA excludes them"
    return f"CPU kernels: PyTorch, many times slower for quantised weights ({reason})"
