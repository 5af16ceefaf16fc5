"""What this machine's memory delivers now: the roof that decoding is held against."""

from __future__ import annotations

import time

import torch

_BUFFER_BYTES = 1 << 29
_ROUNDS = 5


def read_bandwidth_gb_per_s(device: torch.device) -> float:
    """Best of a few passes over half a gigabyte, in 10^9 bytes a second, on torch's threads."""
    buffer = torch.ones(_BUFFER_BYTES // 4, device=device).view(-1, 1 << 16)
    best_s = float("inf")
    for _ in range(_ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        buffer.sum(1)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return _BUFFER_BYTES / best_s / 1e9


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
