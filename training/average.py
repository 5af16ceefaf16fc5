"""The weights between two runs, of which the second went on from the first.

    python -m training.average FOLDER --of RUN OTHER_RUN [--share 0.65]

FOLDER gets `checkpoint/`, `tokenizer/` and `model/`; `--share` is that of OTHER_RUN. A run that
goes on with another mixture learns new things and forgets some; what lies between the two keeps
more of both (Wortsman et al. 2022), as long as no barrier lies between them. The quiz tells.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from training.checkpointing import restore, save
from training.export import export
from training.modeling import MiniatureM2
from training.optimizer import Optimizer
from training.train import SHAPE


def average(folder: Path, first: Path, second: Path, share: float) -> None:
    """Weights and correction biases; the optimizer's state is the second run's."""
    models = [MiniatureM2(SHAPE, torch.Generator()) for _ in range(2)]
    optimizers = [Optimizer(model) for model in models]
    restore(first / "checkpoint", models[0], optimizers[0])
    counters = restore(second / "checkpoint", models[1], optimizers[1])
    before = models[0].state_dict()
    with torch.no_grad():
        for model in models:  # the mean of two products is not the product of the means
            model.lm_head.copy_(model.head_weight())
            model.head_map.zero_()
        for name, tensor in models[1].state_dict().items():
            tensor.lerp_(before[name], 1 - share)
    folder.mkdir(parents=True)
    shutil.copytree(second / "tokenizer", folder / "tokenizer")
    save(folder / "checkpoint", models[1], optimizers[1], counters)
    export(models[1], folder / "tokenizer", folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description="Average two runs' weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of", type=Path, nargs=2, required=True, metavar="RUN")
    parser.add_argument("--share", type=float, default=0.65)
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already; name a folder that is not")
    first, second = options.of
    average(options.folder, first, second, options.share)


if __name__ == "__main__":
    main()
