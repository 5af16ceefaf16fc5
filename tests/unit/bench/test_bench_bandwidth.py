"""The buffer whose reading is the roof: no cache holds it, and it fits the memory."""

from pathlib import Path

import pytest

from m2serve.bench.bandwidth import buffer_bytes
from m2serve.environment import last_cache_bytes, parse_size

MIB = 1 << 20
GIB = 1 << 30


def system(folder: Path, num_cpus: int, cpus_a_cache: int, last: str) -> Path:
    """Processors with 2 MiB each, and a last cache for every few of them."""
    for cpu in range(num_cpus):
        first = cpu // cpus_a_cache * cpus_a_cache
        caches = [("2", "2M", str(cpu)), ("3", last, f"{first}-{first + cpus_a_cache - 1}")]
        for number, facts in enumerate(caches):
            path = folder / f"cpu{cpu}/cache/index{number}"
            path.mkdir(parents=True)
            for name, fact in zip(("level", "size", "shared_cpu_list"), facts, strict=True):
                (path / name).write_text(fact + "\n")
    return folder


@pytest.mark.parametrize(
    ("num_cpus", "cpus_a_cache", "last", "free_bytes", "expected"),
    [
        (4, 4, "32M", 16 * GIB, 512 * MIB),
        (2, 2, "491520K", 16 * GIB, 960 * MIB),
        (96, 8, "98304K", 64 * GIB, 2304 * MIB),
        (2, 2, "491520K", 2 * GIB, 512 * MIB),
        (4, 4, "32M", 100 * MIB + 5, 25 * MIB),
        (0, 1, "", 16 * GIB, 512 * MIB),
    ],
)
def test_no_cache_holds_the_buffer_and_the_memory_does(
    tmp_path: Path, num_cpus: int, cpus_a_cache: int, last: str, free_bytes: int, expected: int
) -> None:
    made = system(tmp_path, num_cpus, cpus_a_cache, last)
    assert buffer_bytes(last_cache_bytes(made), free_bytes) == expected


def test_sizes_are_read_as_linux_writes_them() -> None:
    sizes = {"64": 64, "32K\n": 32768, "4M": 4 * MIB, "": 0, "x": 0, "9G": 0}
    assert {text: parse_size(text) for text in sizes} == sizes
