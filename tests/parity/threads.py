"""The same computation with any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import torch


def of_threads(count: int, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `run` gives with so many threads; afterwards there are as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)
