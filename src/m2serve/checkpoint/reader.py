"""A checkpoint folder: its configuration, and its tensors by name, read where they lie.

Opening reads JSON files and the headers of the shards the index names, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from m2serve.checkpoint.formats.storage import TensorInfo
from m2serve.checkpoint.headers import read_header
from m2serve.errors import CheckpointError
from m2serve.spec.shape import ModelShape, load_config, load_json_object

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# An NVFP4 release has about 190,000 tensors, some 25 MB of index.
MAX_INDEX_BYTES = 256 * 1024 * 1024


class Checkpoint:
    """An open checkpoint; `read` may be called from several threads.

    `tensors` is what the index lists, `notes` what lies in the folder besides and is ignored.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        notes: tuple[str, ...],
    ) -> None:
        self.folder = folder
        self.config = config
        self.shape = ModelShape.from_config(config)
        self.generation_config = generation_config
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.notes = notes
        self._handles: dict[str, Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Open a folder; raises ConfigError for config.json and CheckpointError for the shards."""
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; a checkpoint is a folder of files")
        config = load_config(folder)
        ModelShape.from_config(config)
        generation = folder / "generation_config.json"
        generation_config = load_json_object(generation) if generation.is_file() else {}
        tensors, notes = _tensor_directory(folder)
        return cls(folder, config, generation_config, tensors, notes)

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, a view of the mapped file: copy before writing to it.

        Raises CheckpointError when there is no such tensor or its file became unreadable.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}")
        try:
            tensor: torch.Tensor = self._handle(info.file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{name} cannot be read from {self.folder / info.file}: {error}"
            ) from error
        return tensor

    def close(self) -> None:
        """Forget the mapped files; tensors already read stay valid."""
        with self._lock:
            self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _handle(self, file: str) -> Any:
        with self._lock:
            handle = self._handles.get(file)
            if handle is None:
                handle = safe_open(self.folder / file, framework="pt", device="cpu")
                self._handles[file] = handle
            return handle


def _tensor_directory(folder: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """Tensors of the index (or the single file), and notes about what it leaves out."""
    present = {path.name for path in folder.glob("*.safetensors")}
    if (folder / INDEX_FILE).is_file():
        tensors, notes = _indexed_tensors(folder)
    elif SINGLE_FILE in present:
        tensors, notes = read_header(folder / SINGLE_FILE), []
    elif present:
        raise CheckpointError(
            f"{folder} has {len(present)} safetensors files but no {INDEX_FILE} that says which "
            "tensors they hold; download the index too"
        )
    else:
        raise CheckpointError(f"{folder} has neither {INDEX_FILE} nor {SINGLE_FILE}")
    if not tensors:
        raise CheckpointError(f"{folder} lists no tensors")
    used = {info.file for info in tensors.values()}
    notes += [f"{name} is not named in the index and is ignored" for name in sorted(present - used)]
    return tensors, tuple(notes)


def _indexed_tensors(folder: Path) -> tuple[dict[str, TensorInfo], list[str]]:
    shards = _names_by_shard(folder)
    tensors: dict[str, TensorInfo] = {}
    notes = []
    for file, names in shards.items():
        path = folder / file
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing, though {INDEX_FILE} expects {len(names)} tensors in it, "
                f"{names[0]} for one; download it again"
            )
        header = read_header(path)
        for name in names:
            if name not in header:
                raise CheckpointError(f"{INDEX_FILE} says {name} is in {path}, but it is not")
            tensors[name] = header[name]
        if len(header) > len(names):
            unlisted = next(name for name in header if name not in tensors)
            notes.append(
                f"{file} holds {len(header) - len(names)} tensors the index does not list, "
                f"{unlisted} for one; they are ignored"
            )
    return tensors, notes


def _names_by_shard(folder: Path) -> dict[str, list[str]]:
    """Shard file -> the tensors the index expects in it."""
    path = folder / INDEX_FILE
    weight_map = load_json_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path} has no weight_map object")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_file_name(file):
            raise CheckpointError(
                f"{path} places {name} in {file!r}; only a safetensors file in the same folder "
                "is read"
            )
        shards.setdefault(file, []).append(name)
    return shards


def _is_plain_file_name(file: str) -> bool:
    return file.endswith(".safetensors") and not set(file) & set("/\\:\0")
