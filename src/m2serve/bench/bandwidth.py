"""What this machine's memory delivers now: the roof that decoding is held against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from m2serve.environment import last_cache_bytes, this_machine

_CPU_BUFFER_BYTES = 1 << 29  # at the least
_CACHES = 2  # passes over a buffer of so many times the last caches find nothing there
_GPU_BUFFER_BYTES = 1 << 32  # so long that starting the kernel does not count
_ROUNDS = 5


def read_bandwidth_gb_per_s(device: torch.device) -> float:
    """Best of a few passes over a large buffer, in 10^9 bytes a second, on torch's threads.

    On a CPU row after row, and both halves side by side: its prefetching may bring more from two
    places than from one.
    """
    num_bytes = _GPU_BUFFER_BYTES
    if device.type == "cpu":
        num_bytes = buffer_bytes(last_cache_bytes(), this_machine().available_memory_bytes)
    buffer = torch.ones(num_bytes // 4, device=device)
    rows, halves = buffer.view(-1, 1 << 16), buffer.view(2, -1)
    passes: list[Callable[[], object]] = [lambda: rows.sum(1)]
    if device.type == "cpu":
        passes.append(lambda: torch.dot(halves[0], halves[1]))
    best_s = float("inf")
    for run in passes * _ROUNDS:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return buffer.nbytes / best_s / 1e9


def buffer_bytes(cache_bytes: int, free_bytes: int) -> int:
    """On a CPU: several times its last caches, as far as a quarter of the free memory goes; a
    multiple of 256 KiB."""
    wanted = max(_CPU_BUFFER_BYTES, _CACHES * cache_bytes)
    return max(min(wanted, free_bytes // 4) >> 18, 1) << 18


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
