"""Make what the peers are measured on: the `mid` shape and a few layers of the real widths.

    python -m scripts.peers.make_models [FOLDER] --llama-bin BIN --llama-tree TREE

FOLDER (build/peers/models) gets mid/ (BF16 checkpoint), mid-bf16.gguf, mid-q8_0.gguf,
mid-q4_0.gguf, mid-nvfp4.gguf (experts NVFP4, the rest Q8_0) and wide-q4_0.gguf. What is there
already is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from m2serve.bench.shapes import SHAPES, named_shape
from scripts.peers.mid_checkpoint import write_checkpoint

HERE = Path(__file__).parent
NVFP4_EXPERTS = [f"ffn_{part}_exps=nvfp4" for part in ("gate", "up", "down")]


def make_mid(folder: Path, llama_bin: Path, tree: Path, shape_name: str) -> None:
    checkpoint = folder / "mid"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, named_shape(shape_name))
    original = folder / "mid-bf16.gguf"
    convert = [sys.executable, str(HERE / "convert_gguf.py"), str(tree), str(checkpoint)]
    make(original, convert)
    quantize = str(llama_bin / "llama-quantize")
    for name in ("q8_0", "q4_0"):
        make(folder / f"mid-{name}.gguf", [quantize, str(original)], [name])
    types = [word for rule in NVFP4_EXPERTS for word in ("--tensor-type", rule)]
    make(folder / "mid-nvfp4.gguf", [quantize, *types, str(original)], ["q8_0"])


def make_wide(folder: Path, tree: Path, layers: int, shape_name: str) -> None:
    script = [sys.executable, str(HERE / "wide_gguf.py"), str(tree)]
    make(folder / "wide-q4_0.gguf", script, [str(layers), "--shape", shape_name])


def make(output: Path, before: list[str], after: list[str] | None = None) -> None:
    """Run a command that writes `output`; half a file never stays."""
    if output.exists():
        return
    partial = output.with_suffix(".partial")
    print(f"making {output}", flush=True)
    subprocess.run([*before, str(partial), *(after or [])], check=True, stdout=subprocess.DEVNULL)
    partial.rename(output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the files the peers are measured on.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/peers/models"))
    parser.add_argument("--llama-bin", type=Path, default=Path("build/peers/llama/bin"))
    parser.add_argument(
        "--llama-tree",
        type=Path,
        default=Path("build/peers/llama_cpp_python-0.3.36/vendor/llama.cpp"),
    )
    parser.add_argument("--mid-shape", choices=SHAPES, default="mid", help="for a dry run")
    parser.add_argument("--wide-shape", choices=SHAPES, default="m2.5", help="for a dry run")
    parser.add_argument("--wide-layers", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    make_mid(folder, arguments.llama_bin, arguments.llama_tree, arguments.mid_shape)
    make_wide(folder, arguments.llama_tree, arguments.wide_layers, arguments.wide_shape)


if __name__ == "__main__":
    main()
