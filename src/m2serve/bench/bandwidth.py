"""What this machine's memory delivers now: the roof that decoding is held against."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from m2serve.environment import this_machine

# At the least; on a GPU so long that starting the kernel does not count.
_BUFFER_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}
_CACHES = 2  # passes over a buffer of so many times the last caches find nothing there
_CACHE_FOLDERS = "devices/system/cpu/cpu*/cache/index*"
_ROUNDS = 5


def read_bandwidth_gb_per_s(device: torch.device) -> float:
    """Best of a few passes over a large buffer, in 10^9 bytes a second, on torch's threads."""
    buffer = torch.ones(buffer_bytes(device.type) // 4, device=device).view(-1, 1 << 16)
    best_s = float("inf")
    for _ in range(_ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        buffer.sum(1)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return buffer.nbytes / best_s / 1e9


def buffer_bytes(
    device_type: str, system: Path = Path("/sys"), free_bytes: int | None = None
) -> int:
    """Several times the last caches of all processors together, as far as a quarter of the free
    memory (of this machine, unless given) goes; a multiple of 256 KiB."""
    least = _BUFFER_BYTES[device_type]
    if device_type != "cpu":
        return least
    free = this_machine().available_memory_bytes if free_bytes is None else free_bytes
    wanted = max(least, _CACHES * last_cache_bytes(system))
    return max(min(wanted, free // 4) >> 18, 1) << 18


def last_cache_bytes(system: Path) -> int:
    """Of the highest level there is, each cache once; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for folder in system.glob(_CACHE_FOLDERS):
        try:
            level, size, shared = (
                (folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        if level.isdecimal():
            caches[int(level), shared] = parse_size(size)
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last)


def parse_size(text: str) -> int:
    """Linux's "32K" or "4M" as bytes; 0 for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})([KM]?)\s*", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]] if match else 0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
