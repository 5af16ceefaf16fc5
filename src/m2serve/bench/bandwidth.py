"""What this machine's memory delivers now: the roof that decoding is held against."""

from __future__ import annotations

import time

import torch

# Several times any cache, and on a GPU long enough that starting the kernel does not count.
_BUFFER_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}
_ROUNDS = 5


def read_bandwidth_gb_per_s(device: torch.device) -> float:
    """Best of a few passes over a large buffer, in 10^9 bytes a second, on torch's threads."""
    buffer = torch.ones(_BUFFER_BYTES[device.type] // 4, device=device).view(-1, 1 << 16)
    best_s = float("inf")
    for _ in range(_ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        buffer.sum(1)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return buffer.nbytes / best_s / 1e9


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
