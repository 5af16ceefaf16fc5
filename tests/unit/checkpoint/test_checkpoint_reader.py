"""Opening a folder: only the index decides, and what is broken is named."""

import json
import os
import random
import threading
from pathlib import Path

import pytest
import torch
from tiny import build_tiny
from tiny_edit import INDEX_FILE, edit_json

from m2serve.checkpoint.headers import read_header
from m2serve.checkpoint.reader import Checkpoint
from m2serve.errors import CheckpointError, ConfigError, M2Error

SHARD = "model-00001-of-00004.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_tiny(tmp_path, num_hidden_layers=1)
    return tmp_path


def test_open_and_read(tmp_path: Path) -> None:
    tiny = build_tiny(tmp_path, format="f32", num_hidden_layers=1)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.shape == tiny.shape
        assert checkpoint.generation_config["top_k"] == 40
        assert checkpoint.notes == ()
        assert set(checkpoint.tensors) == set(tiny.state)
        for name, value in tiny.state.items():
            info = checkpoint.tensors[name]
            assert (info.dtype, info.shape, info.nbytes) == (
                "F32",
                tuple(value.shape),
                value.nbytes,
            )
            assert torch.equal(checkpoint.read(name), value)


def test_opening_reads_only_headers(folder: Path) -> None:
    """Data that is not there on disk (a hole) costs nothing to open."""
    before = {path.name: read_header(path) for path in folder.glob("*.safetensors")}
    for path in folder.glob("*.safetensors"):
        size = path.stat().st_size
        length = int.from_bytes(path.read_bytes()[:8], "little")
        os.truncate(path, 8 + length)
        os.truncate(path, size)
    checkpoint = Checkpoint.open(folder)
    assert sum(len(header) for header in before.values()) == len(checkpoint.tensors)


def test_reading_from_many_threads(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    expected = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    failures: list[str] = []

    def read_all(seed: int) -> None:
        names = list(expected)
        random.Random(seed).shuffle(names)
        failures.extend(n for n in names if not torch.equal(checkpoint.read(n), expected[n]))

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_single_file_without_an_index(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    other = tmp_path_factory.mktemp("single")
    (other / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, other / "model.safetensors")
    assert set(Checkpoint.open(other).tensors) == set(tensors)


def test_stray_files_and_unlisted_tensors_are_noted_and_ignored(folder: Path) -> None:
    (folder / "model-inputscales.safetensors").write_bytes(b"nonsense")
    name = "lm_head.weight"
    edit_json(folder / INDEX_FILE, lambda index: index["weight_map"].pop(name))
    checkpoint = Checkpoint.open(folder)
    assert name not in checkpoint.tensors
    assert any("model-inputscales.safetensors" in note for note in checkpoint.notes)
    assert any("lm_head.weight" in note for note in checkpoint.notes)


def test_symlinked_shards_are_followed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blobs = tmp_path_factory.mktemp("blobs")
    for index, path in enumerate(sorted(folder.glob("*.safetensors"))):
        path.rename(blobs / f"blob{index}")
        path.symlink_to(blobs / f"blob{index}")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.read("model.norm.weight").shape == (256,)


def test_missing_shard_is_named_with_a_tensor(folder: Path) -> None:
    (folder / SHARD).unlink()
    names = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    with pytest.raises(CheckpointError, match=f"{SHARD} is missing") as caught:
        Checkpoint.open(folder)
    assert any(name in str(caught.value) for name, file in names.items() if file == SHARD)


def test_dangling_symlink_counts_as_missing(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(folder / "nowhere")
    with pytest.raises(CheckpointError, match=f"{SHARD} is missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_shard_is_named(folder: Path, keep: int) -> None:
    path = folder / SHARD
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    with pytest.raises(CheckpointError, match=f"{SHARD} is truncated"):
        Checkpoint.open(folder)


def test_index_that_lies_is_named(folder: Path) -> None:
    def lie(index: dict[str, dict[str, str]]) -> None:
        index["weight_map"]["model.layers.0.invented.weight"] = SHARD

    edit_json(folder / INDEX_FILE, lie)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.0\.invented\.weight is in .*" + SHARD
    ):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "c:model.safetensors",
        "model\0.safetensors",
        "pytorch_model.bin",
        "",
        7,
        None,
    ],
)
def test_index_may_not_leave_the_folder(folder: Path, file: object) -> None:
    edit_json(
        folder / INDEX_FILE, lambda index: index["weight_map"].update({"lm_head.weight": file})
    )
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        Checkpoint.open(folder)


def test_shards_without_an_index_are_not_guessed(folder: Path) -> None:
    (folder / INDEX_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors\.index"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}}', "{}"])
def test_a_broken_index_is_named(folder: Path, text: str) -> None:
    (folder / INDEX_FILE).write_text(text)
    with pytest.raises(M2Error, match=str(folder)):
        Checkpoint.open(folder)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"config\.json"):
        Checkpoint.open(tmp_path)


def test_unknown_tensor_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'no\.such'"):
        Checkpoint.open(folder).read("no.such")


def write_header(path: Path, header: object, data_bytes: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * data_bytes)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": 4},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        None,
        3,
    ],
)
def test_a_wrong_header_entry_names_its_tensor(tmp_path: Path, entry: object) -> None:
    path = write_header(tmp_path / "x.safetensors", {"the.tensor": entry}, data_bytes=4)
    with pytest.raises(CheckpointError, match=r"the\.tensor"):
        read_header(path)


def test_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_flipped_header_bytes_never_escape_as_another_error(folder: Path) -> None:
    """Any damage to the header is a CheckpointError or leaves a readable directory."""
    whole = (folder / SHARD).read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(0)
    path = folder / "damaged.safetensors"
    messages = []
    for _ in range(200):
        damaged = bytearray(whole[: length + 64])
        for _ in range(3):
            damaged[generator.randrange(length)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_header(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all(str(path) in message for message in messages)
