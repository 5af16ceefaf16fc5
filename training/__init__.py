"""Makes the miniature: a small world, its tokenizer, the training loop and the quiz."""

import os

# Read by OpenMP when torch is loaded. Threads that spin while they wait make a step six times
# slower as soon as anything else runs on the machine's few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
