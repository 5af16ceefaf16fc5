"""Reading the header of a safetensors file without touching its data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from m2serve.checkpoint.formats.storage import TORCH_DTYPES, TensorInfo
from m2serve.errors import CheckpointError

# The safetensors library refuses a larger header too.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensor name -> TensorInfo of one file; raises CheckpointError naming the file and tensor.

    The byte ranges are checked against the size of the file, so a truncated download is found
    before anything is read from it.
    """
    size = path.stat().st_size
    header, data_start = _parse(path, size)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor_info(path, name, entry, size - data_start)
    return tensors


def _parse(path: Path, size: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise CheckpointError(
                f"{path} is truncated: {size} bytes are too few for its header; download it again"
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} announces a header of {length} bytes; {MAX_HEADER_BYTES} is the limit"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no safetensors file: its header is {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is not an object")
    return header, 8 + length


def _tensor_info(path: Path, name: str, entry: Any, data_bytes: int) -> TensorInfo:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes {name!r} wrongly in its header") from error
    if not isinstance(dtype, str) or dtype not in TORCH_DTYPES:
        raise CheckpointError(f"{name} in {path} has dtype {dtype!r}, which m2serve does not read")
    numbers = (*shape, begin, end)
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError(f"{path} describes {name!r} wrongly: shape {list(shape)}")
    nbytes = math.prod(shape) * TORCH_DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise CheckpointError(
            f"{name} in {path} is {dtype} {list(shape)}, which is {nbytes} bytes, "
            f"but its header gives it {end - begin}"
        )
    if end > data_bytes:
        raise CheckpointError(
            f"{path} is truncated: {name} needs {end - data_bytes} bytes more than the file has; "
            "download it again"
        )
    return TensorInfo(dtype, shape, path.name, nbytes)
