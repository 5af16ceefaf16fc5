"""A deployment as flat facts: what a known issue's condition is held against. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """Unknown text is "", unknown numbers are 0; a condition on an unknown fact does not fire.

    `flags` holds the engine's flags with "=value" where they have one
    ("--enable-expert-parallel", "--kv-cache-dtype=fp8"), `env` "NAME=value".
    `model_base` is M2, M2.1, M2.5 or M2.7; `quantization` and `group_size` are the variant's.
    """

    engine: str = ""
    engine_version: str = ""
    arch: str = ""
    accelerator: str = ""
    vendor: str = ""
    num_devices: int = 0
    num_nodes: int = 0
    model: str = ""
    model_base: str = ""
    quantization: str = ""
    group_size: int = 0
    num_experts: int = 0
    tensor_parallel: int = 0
    pipeline_parallel: int = 0
    data_parallel: int = 0
    expert_parallel: bool = False
    kv_cache_dtype: str = ""
    max_model_len: int = 0
    checkpoint_max_model_len: int = 0
    gpu_memory_utilization: float = 0.0
    host_memory_bytes: int = 0
    device_memory_bytes: int = 0
    draft: str = ""
    client: str = ""
    flags: frozenset[str] = frozenset()
    env: frozenset[str] = frozenset()
