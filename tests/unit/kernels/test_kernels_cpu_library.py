"""With and without a compiled library, and what is said about it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from m2serve.kernels import cpu_library, reference
from m2serve.kernels.cpu_library import describe_cpu_kernels, find_cpu_library, load_cpu_library
from m2serve.kernels.dispatch import select_kernels


def test_without_a_library_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library, "find_cpu_library", lambda: None)
    load_cpu_library.cache_clear()
    try:
        assert load_cpu_library() is None
        assert select_kernels(torch.device("cpu")).linear is reference.linear
        line = describe_cpu_kernels()
    finally:
        load_cpu_library.cache_clear()
    assert "PyTorch" in line
    assert "compiler" in line
    assert "\n" not in line


@pytest.mark.skipif(find_cpu_library() is None, reason="no library was built")
@pytest.mark.parametrize("isa", ["avx2", "none"])
def test_the_instruction_set_can_be_forced(isa: str) -> None:
    code = "from m2serve.kernels.cpu_library import *; print(describe_cpu_kernels())"
    environment = {"M2_CPU_ISA": isa, "PATH": "/usr/bin:/bin"}
    line = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert ("avx2" in line) if isa == "avx2" else ("PyTorch" in line)
