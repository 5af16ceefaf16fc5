"""Where an engine computes, in which dtype, on how many threads, and how much memory is left."""

from __future__ import annotations

import logging
import os
import re

import torch

from m2serve.engine.config import DEFAULT_BATCHED_TOKENS, EngineConfig
from m2serve.environment import Machine, this_machine
from m2serve.errors import ResourceError, UsageError
from m2serve.kernels.cpu_library import load_cpu_library
from m2serve.kernels.cpu_topology import MAX_THREADS

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KV_CACHE_DTYPES = {**DTYPES, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
# Without these a CPU computes bfloat16 several times slower than float32.
_BFLOAT16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def choose_device(config: EngineConfig) -> torch.device:
    """The first CUDA device unless the config says or the machine has only a CPU."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ResourceError("--device is cuda, but torch finds no CUDA device. Use --device cpu.")
    if config.device == "cpu" or not has_cuda:
        return torch.device("cpu")
    return torch.device("cuda", 0)


def choose_dtype(config: EngineConfig, device: torch.device, machine: Machine) -> str:
    """A key of DTYPES: bfloat16 where the hardware computes it, else float32."""
    if config.dtype != "auto":
        return config.dtype
    fast = device.type == "cuda" or bool(machine.cpu_flags & _BFLOAT16_CPU_FLAGS)
    return "bfloat16" if fast else "float32"


def has_cpu_kernels(device: torch.device) -> bool:
    """Whether the native kernels may compute; they do when they can take the checkpoint, too."""
    library = load_cpu_library()  # on a GPU, too, it says what is wrong with the environment
    return device.type == "cpu" and library is not None


def choose_kv_cache_dtype(config: EngineConfig, dtype: str, has_kernels: bool) -> str:
    """A key of KV_CACHE_DTYPES; raises UsageError.

    Unless the config says so it is `dtype`; where the CPU kernels read it, bfloat16 as the
    checkpoint's own, unless the config asks for float32 all through.
    """
    if config.kv_cache_dtype == "auto":
        return "bfloat16" if has_kernels and config.dtype == "auto" else dtype
    check_kv_cache_dtype(config.kv_cache_dtype, has_kernels)
    return config.kv_cache_dtype


def check_kv_cache_dtype(name: str, has_kernels: bool) -> None:
    """PyTorch's attention reads floating caches only; raises UsageError."""
    if name not in DTYPES and not has_kernels:
        raise UsageError(
            f"--kv-cache-dtype is {name}, which only the compiled CPU kernels read, and PyTorch "
            f"computes here; allowed: auto, {', '.join(DTYPES)}"
        )


def choose_num_threads(config: EngineConfig, machine: Machine, has_kernels: bool) -> int:
    """The config's number, else OMP_NUM_THREADS, else one a physical core; with the native kernels
    at most as many as their pool has."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    of_environment = int(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else 0
    asked_for = config.num_threads or of_environment
    if not has_kernels:
        return asked_for or machine.num_cores
    if asked_for > MAX_THREADS:
        logger.warning("%d threads are more than the CPU kernels use: %d", asked_for, MAX_THREADS)
    return min(asked_for or machine.num_cores, MAX_THREADS)


def choose_max_num_batched_tokens(config: EngineConfig, device: torch.device) -> int:
    """The config's number, else DEFAULT_BATCHED_TOKENS."""
    return config.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[device.type]


def free_memory_bytes(device: torch.device) -> int:
    """What can be allocated on the device now."""
    if device.type == "cpu":
        return this_machine().available_memory_bytes
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int(free_bytes)
