"""The checkpoint that tests of whole engines share."""

from pathlib import Path

import pytest
from tiny import build_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(
        folder,
        format="f32",
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        head_dim=16,
        rotary_dim=8,
        intermediate_size=32,
    )
    return folder
