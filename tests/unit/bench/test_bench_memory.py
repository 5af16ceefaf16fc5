"""The peak rises with what is held for a moment, and starts anew when asked."""

from __future__ import annotations

import sys

import pytest
import torch

from m2serve.bench.memory import peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
SIZE = 1 << 28


@pytest.mark.skipif(sys.platform != "linux", reason="other systems only tell the peak of all time")
def test_peak_memory() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    torch.ones(SIZE, dtype=torch.uint8)
    assert peak_memory_bytes(CPU) > before + SIZE // 2
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < before + SIZE // 2
