"""m2serve: the MiniMax-M2 language models, served right and fast on the hardware you have."""

__version__ = "0.1.0"
