"""One way to run a checkpoint on given hardware: what the search tries and the rules judge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache

from m2serve.records import Parallelism
from m2serve.spec.cost import WeightBytes
from m2serve.spec.engines import Engine, Kernel, find_engine
from m2serve.spec.hardware import Accelerator, Hardware
from m2serve.spec.shape import ModelShape
from m2serve.spec.units import GIB
from m2serve.spec.variants import Variant, dequantised


@dataclass(frozen=True)
class Configuration:
    """`kv_cache_dtype` is auto (BF16), fp8 or int8. `cpu_offload_bytes` is for each device.

    `max_num_seqs` is for each data-parallel rank. `draft` is a hub id or "" for no drafting.
    `hardware` is what one of `num_replicas` independent servers has; `machine` is theirs together.
    """

    engine: Engine
    version: str
    variant: Variant
    hardware: Hardware
    parallelism: Parallelism
    max_model_len: int
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 8192
    cpu_offload_bytes: int = 0
    enforce_eager: bool = False
    draft: str = ""
    num_replicas: int = 1

    @cached_property
    def machine(self) -> Hardware:
        """The hardware of all replicas; more than one are on one uniform node."""
        if self.num_replicas == 1:
            return self.hardware
        (group,) = self.hardware.groups
        whole = dataclasses.replace(group, count=group.count * self.num_replicas)
        return dataclasses.replace(self.hardware, groups=(whole,))

    @cached_property
    def held(self) -> Variant:
        """The checkpoint as the engine holds it: without FP8 units in reach it becomes BF16."""
        kernels = self.kernels("moe", self.variant.experts_format, self.arch)
        if self.engine.name == "vllm-ascend" and self.variant.quantization == "fp8" and not kernels:
            return _unpacked(self.variant)
        return self.variant

    @property
    def shape(self) -> ModelShape:
        return sizes(self.variant)[0]

    def kernels(self, operation: str, format: str, arch: str) -> tuple[Kernel, ...]:
        """Kernels of the planned release, in its order of preference."""
        return _kernels(self.engine.name, operation, format, arch, self.version)

    @cached_property
    def devices(self) -> tuple[Accelerator, ...]:
        return self.hardware.devices

    @property
    def arch(self) -> str:
        """Of the first device; unequal devices are judged one by one."""
        return self.hardware.groups[0].accelerator.arch

    @property
    def devices_per_node(self) -> int:
        return sum(group.count for group in self.hardware.groups)

    @property
    def expert_shards(self) -> int:
        """Ranks of one pipeline stage, which share its experts whole or cut."""
        cut = self.parallelism
        return cut.tensor * cut.data * cut.prefill_context

    @cached_property
    def archs(self) -> tuple[str, ...]:
        """Of all devices, each once."""
        return tuple(dict.fromkeys(device.arch for device in self.devices))

    def replace(self, **changes: object) -> Configuration:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        cut = describe_replicas(self.num_replicas, self.parallelism)
        parts = [self.engine.name, self.variant.name, cut]
        if self.kv_cache_dtype != "auto":
            parts.append(f"{self.kv_cache_dtype.upper()} KV cache")
        if self.cpu_offload_bytes:
            parts.append(f"{self.cpu_offload_bytes / GIB:.0f} GiB offloaded a device")
        return ", ".join(parts)


@lru_cache(maxsize=256)
def sizes(variant: Variant) -> tuple[ModelShape, WeightBytes]:
    """Shape and bytes; the variant's own properties compute them anew at each access."""
    return variant.shape, variant.weight_bytes


@lru_cache(maxsize=1024)
def _kernels(
    engine: str, operation: str, format: str, arch: str, version: str
) -> tuple[Kernel, ...]:
    return find_engine(engine).kernels_for(operation, format, arch, version)


@lru_cache(maxsize=64)
def _unpacked(variant: Variant) -> Variant:
    return dequantised(variant)


def describe_replicas(num_replicas: int, cut: Parallelism) -> str:
    """("2 x TP4 EP", "TP8")."""
    text = describe_cut(cut)
    return f"{num_replicas} x {text}" if num_replicas > 1 else text


def describe_cut(cut: Parallelism) -> str:
    """("TP4 DP4 EP", "PP3 (40,11,11)", "TP1")."""
    sizes = (
        ("TP", cut.tensor),
        ("PP", cut.pipeline),
        ("DP", cut.data),
        ("DCP", cut.decode_context),
        ("PCP", cut.prefill_context),
    )
    words = [f"{name}{size}" for name, size in sizes if size > 1] or ["TP1"]
    if cut.expert_parallel:
        words.append("EP")
    if cut.pipeline_layers:
        words.append(f"({','.join(str(layers) for layers in cut.pipeline_layers)})")
    return " ".join(words)
