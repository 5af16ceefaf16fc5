"""Where everything is, and how each program is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.peers.figures import batched_bench, llama_bench, own_bench
from scripts.peers.processes import Program

HERE = Path(__file__).parent

_INT8 = ("--head-format", "int8", "--cpu-activation", "int8")
OURS = {
    "bf16": ("--format", "bf16"),
    "int8": ("--format", "int8", "--attention-format", "int8", *_INT8),
    "fp8": ("--format", "fp8", "--attention-format", "fp8", "--head-format", "fp8"),
    # Attention in 4 bits, too, as Q4_0 has it.
    "nvfp4": ("--format", "nvfp4", "--attention-format", "nvfp4", *_INT8),
    "nvfp4, attention and head fp8": (
        *("--format", "nvfp4", "--attention-format", "fp8"),
        *("--head-format", "fp8", "--cpu-activation", "int8"),
    ),
    "nvfp4, attention and head bf16": ("--format", "nvfp4", "--cpu-activation", "int8"),
    "int4": ("--format", "int4-g32", "--attention-format", "int4-g32", *_INT8),
}


@dataclass(frozen=True)
class Setup:
    """Where everything is; `shape` and `wide_shape` are names of `m2 bench engine`.

    `requests` are how many are sent at each level of concurrency.
    """

    m2: Path
    python: Path
    llama_bin: Path
    ik_bin: Path
    vllm_python: Path
    models: Path
    logs: Path
    threads: int = 2
    shape: str = "mid"
    wide_shape: str = "m2.5"
    wide_layers: int = 3
    requests: tuple[int, ...] = (4, 16, 32)

    def own(self, name: str, format: str, *options: str, shape: str = "") -> Program:
        argv = (str(self.m2), "bench", "engine", "--shape", shape or self.shape, *OURS[format])
        threads = ("--num-threads", str(self.threads))
        return Program(name, (*argv, *options, *threads, "--json"), own_bench)

    def llama_bench(self, name: str, folder: Path, file: str, *options: str) -> Program:
        argv = (str(folder / "llama-bench"), "-m", str(self.models / file))
        argv = (*argv, "-t", str(self.threads), *options, "-o", "json")
        return Program(name, argv, llama_bench, folder=self.logs)

    def batched(self, name: str, folder: Path, file: str, *options: str) -> Program:
        argv = (str(folder / "llama-batched-bench"), "-m", str(self.models / file))
        threads = ("-t", str(self.threads), "-tb", str(self.threads))
        # ik_llama.cpp prints its table on stderr, and a log file where it runs.
        return Program(
            *(name, (*argv, *threads, *options), batched_bench),
            timeout_s=180.0,
            folder=self.logs,
            stderr_too=True,
        )
