"""Stores a BF16 checkpoint in another format, rounded to nearest, nothing calibrated.

    python tests/tiny_convert.py SOURCE FOLDER --format fp8

For small checkpoints: everything is held in memory. The quality of what comes out is what plain
rounding gives; a quantiser that calibrates can only be better.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import FORMATS, write_json, write_shards
from tiny_formats import RECIPES, side_files, store

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def convert(source: Path, folder: Path, format: str) -> None:
    """Write `source`, a folder of unquantised safetensors, into `folder` as `format`."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        values |= {name: tensor.float() for name, tensor in load_file(file).items()}
    config = json.loads((source / "config.json").read_text("utf-8"))
    if "quantization_config" in config:
        raise ValueError(f"{source} is quantised already; convert from the BF16 checkpoint")
    tensors, meaning = store(values, format)
    write_shards(folder, tensors)
    quantization_config = RECIPES[format].config
    if quantization_config is not None:
        config["quantization_config"] = quantization_config(config["num_hidden_layers"])
    write_json(folder / "config.json", config)
    for file_name, content in side_files(tensors, meaning, format).items():
        write_json(folder / file_name, content)
    for file_name in SIDE_FILES:
        if (source / file_name).is_file():
            shutil.copyfile(source / file_name, folder / file_name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Store a BF16 checkpoint in another format.")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, required=True)
    arguments = parser.parse_args()
    convert(arguments.source, arguments.folder, arguments.format)


if __name__ == "__main__":
    main()
