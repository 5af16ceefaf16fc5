"""The read bandwidth of this minute, as `m2 bench engine` measures it.

python scripts/peers/bandwidth.py THREADS
"""

from __future__ import annotations

import json
import sys

import torch

from m2serve.bench.bandwidth import read_bandwidth_gb_per_s
from m2serve.environment import ask_for_huge_pages


def main() -> None:
    ask_for_huge_pages()
    torch.set_num_threads(int(sys.argv[1]))
    measured = read_bandwidth_gb_per_s(torch.device("cpu"))
    print("RESULT " + json.dumps({"read_bandwidth_gb_per_s": measured}))


if __name__ == "__main__":
    main()
