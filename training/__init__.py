"""Makes the miniature: a small world, its tokenizer, the training loop and the quiz."""

import os
import sys

# Read by OpenMP when torch is loaded. Threads that spin while they wait make a step six times
# slower as soon as anything else runs on the machine's few cores. For the trainer alone: whoever
# imports a module from here to measure other programs hands its environment on to them, and
# llama.cpp decodes three times slower with it.
if "training.train" in sys.orig_argv:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
