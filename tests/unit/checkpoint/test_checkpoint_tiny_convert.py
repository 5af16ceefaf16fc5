"""Converting a stored checkpoint gives what storing its values gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import build_tiny
from tiny_convert import convert

from m2serve.checkpoint.reader import Checkpoint


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _bytes(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("format", ["fp8", "nvfp4-modelopt", "int4-awq", "int8-ct"])
def test_conversion_stores_the_rounded_values(tmp_path: Path, format: str) -> None:
    source = build_tiny(tmp_path / "bf16", num_hidden_layers=2)
    expected = build_tiny(
        tmp_path / "direct", format=format, state=source.state, num_hidden_layers=2
    )
    convert(source.folder, tmp_path / "converted", format)
    wanted, found = _tensors(expected.folder), _tensors(tmp_path / "converted")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert _bytes(tensor) == _bytes(found[name]), name
    with Checkpoint.open(tmp_path / "converted") as checkpoint:
        assert checkpoint.shape == source.shape


def test_a_quantised_source_is_refused(tmp_path: Path) -> None:
    source = build_tiny(tmp_path / "fp8", format="fp8", num_hidden_layers=2)
    with pytest.raises(ValueError, match="quantised already"):
        convert(source.folder, tmp_path / "again", "int8-ct")
