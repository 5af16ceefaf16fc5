"""A checkpoint as BF16 GGUF, by the converter of a llama.cpp tree.

    python scripts/peers/convert_gguf.py TREE CHECKPOINT OUTPUT

The converter knows tokenizers by a hash of what they make of a text. Ours splits as M2's does, so
it is told that; nothing else is changed.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    tree, checkpoint, output = map(Path, sys.argv[1:])
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "minimax-m2"
    script = tree / "convert_hf_to_gguf.py"
    sys.argv = [str(script), str(checkpoint), "--outtype", "bf16", "--outfile", str(output)]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
