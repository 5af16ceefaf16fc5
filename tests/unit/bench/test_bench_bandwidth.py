"""The buffer whose reading is the roof: no cache holds it, and it fits the memory."""

from pathlib import Path

import pytest

from m2serve.bench.bandwidth import buffer_bytes, parse_size

MIB = 1 << 20
GIB = 1 << 30


def system(folder: Path, *sizes: str) -> Path:
    for number, size in enumerate(sizes):
        path = folder / f"devices/system/cpu/cpu0/cache/index{number}"
        path.mkdir(parents=True)
        (path / "size").write_text(size + "\n")
    return folder


@pytest.mark.parametrize(
    ("sizes", "free_bytes", "expected"),
    [
        (("48K", "2M", "32M"), 16 * GIB, 512 * MIB),
        (("48K", "2M", "491520K"), 16 * GIB, 1920 * MIB),
        (("48K", "2M", "491520K"), 4 * GIB, 1024 * MIB),
        (("48K", "2M", "491520K"), 1 * GIB, 512 * MIB),
        (("48K",), 100 * MIB + 5, 100 * MIB),
        ((), 16 * GIB, 512 * MIB),
    ],
)
def test_no_cache_holds_the_buffer(
    tmp_path: Path, sizes: tuple[str, ...], free_bytes: int, expected: int
) -> None:
    assert buffer_bytes("cpu", system(tmp_path, *sizes), free_bytes) == expected


def test_sizes_are_read_as_linux_writes_them() -> None:
    sizes = {"64": 64, "32K\n": 32768, "4M": 4 * MIB, "": 0, "x": 0, "9G": 0}
    assert {text: parse_size(text) for text in sizes} == sizes
