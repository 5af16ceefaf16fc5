"""A deployment as flat facts: what a known issue's condition is held against. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """Unknown text is "", unknown numbers are 0, other unknown facts None; a condition on an
    unknown fact does not fire.

    `flags` holds the engine's flags with "=value" where they have one
    ("--enable-expert-parallel", "--kv-cache-dtype=fp8"), `env` "NAME=value"; an empty set says that
    there are none. `model_base` is M2, M2.1, M2.5 or M2.7; `quantization` and `group_size` are the
    variant's. `draft` is "eagle3", "mtp" or a draft's name. `client` is the program that sends the
    requests, `max_tokens` what it allows an answer. `prefix_hit` is as in a Workload.
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
    expert_parallel: bool | None = None
    kv_cache_dtype: str = ""
    max_model_len: int = 0
    checkpoint_max_model_len: int = 0
    gpu_memory_utilization: float = 0.0
    host_memory_bytes: int = 0
    device_memory_bytes: int = 0
    draft: str = ""
    client: str = ""
    max_tokens: int = 0
    prefix_hit: float = 0.0
    flags: frozenset[str] | None = None
    env: frozenset[str] | None = None
