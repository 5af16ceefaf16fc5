"""The speed of a configuration under a workload: the fitted model, and what it was not fitted on.

Measured were tensor, data and expert parallel runs of vLLM on one node, and published figures of
vLLM-Ascend. Pipelines, other engines, several nodes, offloading and other chips add constants with
their sources; there the interval is the wider one of accelerators that were not measured.
"""

from __future__ import annotations

import numpy as np

from m2serve.plan.configuration import Configuration
from m2serve.plan.memory import MemoryPlan
from m2serve.plan.speed_constants import load_constants, measured_accelerators
from m2serve.plan.speed_fit import SpeedConstants
from m2serve.plan.speed_model import Columns, under_load
from m2serve.plan.speed_model import tpot_ms as fitted_tpot_ms
from m2serve.plan.speed_model import ttft_ms as fitted_ttft_ms
from m2serve.plan.speed_point import speed_point
from m2serve.records import Estimate, Speed, Workload

# SGLang's published single streams on B200 and GB300 against vLLM's.
_SGLANG_MS = {"sm_100": 2.8, "sm_103": 2.8}
_CROSS_NODE_TENSOR_MS = 12.0  # 124 all-reduces over 200 GbE, 2 x DGX Spark
# One exchange of a layer's tokens between ranks on several nodes, out and back, by the number of
# ranks: DeepEP's low-latency kernels on H800 over 400 Gb/s InfiniBand, hidden size 7,168
# (deepseek-ai/DeepEP, docs/legacy.md). Other backends are slower.
_EXCHANGE_MS = ((16, 0.313), (32, 0.428), (64, 0.487), (128, 0.561))
_EXCHANGE_HIDDEN = 7168
_HOP_MS = 0.3
_OWN_GPU_MS = 22.0  # without CUDA graphs
_OWN_CPU_MS = 1.0  # scheduler, sampler and the way into native code (docs/log.md)
_HOST_LINK_BYTES_PER_MS = 50e6


def predict(c: Configuration, memory: MemoryPlan, workload: Workload) -> Speed:
    """At the workload's concurrency, or what the KV cache holds of it; `memory` is one replica's.

    Replicas share the users evenly.
    """
    constants = load_constants()
    request = workload.input_len + workload.output_len
    wanted = workload.concurrency / c.num_replicas
    users = max(1.0, min(wanted, memory.kv_cache_tokens / request))
    columns = Columns([speed_point(c, workload, users)])
    fitted = fitted_tpot_ms(constants.tpot, columns)
    tpot = fitted + _extra_ms(c)
    ttft = fitted_ttft_ms(constants.ttft, columns, fitted) + _extra_ms(c)
    length = np.array([float(workload.output_len)])
    source, tpot_spread, ttft_spread = _basis(c, constants)

    def loaded(by_tpot: float, by_ttft: float) -> tuple[float, float]:
        """(TTFT, output tokens a second) where both times are so much longer."""
        first, rate = under_load(
            by_tpot * tpot, by_ttft * ttft, columns.numbers["users"], np.array([wanted]), length
        )
        return float(first[0]), float(rate[0]) * _busy_replicas(c, workload)

    first, rate = loaded(1.0, 1.0)
    _, fast = loaded(1 / (1 + tpot_spread), 1 / (1 + ttft_spread))
    _, slow = loaded(1 + tpot_spread, 1 + ttft_spread)
    return Speed(
        _estimate(first, ttft_spread, source),
        _estimate(float(tpot[0]), tpot_spread, source),
        Estimate(rate, slow, fast, source),
    )


def _busy_replicas(c: Configuration, workload: Workload) -> int:
    return min(c.num_replicas, workload.concurrency)


def _extra_ms(c: Configuration) -> float:
    cut = c.parallelism
    extra = 0.0
    if c.engine.name == "sglang":
        extra += _SGLANG_MS.get(c.arch, 0.0)
    if cut.tensor > c.devices_per_node:
        extra += _CROSS_NODE_TENSOR_MS
    elif c.engine.name != "vllm-ascend":  # whose figures are of several nodes already
        extra += _exchange_ms(c)
    if c.engine.name == "own":
        extra += _OWN_CPU_MS if c.arch == "cpu" else _OWN_GPU_MS
    extra += cut.pipeline * c.cpu_offload_bytes / _HOST_LINK_BYTES_PER_MS
    return extra + (cut.pipeline - 1) * _HOP_MS


def _exchange_ms(c: Configuration) -> float:
    """What experts on other nodes add to a step."""
    cut, shape = c.parallelism, c.shape
    if c.hardware.num_nodes == 1 or not cut.expert_parallel:
        return 0.0
    if c.expert_shards <= c.devices_per_node:
        return 0.0
    fits = (ms for ranks, ms in _EXCHANGE_MS if c.expert_shards <= ranks)
    each = next(fits, _EXCHANGE_MS[-1][1])
    return each * shape.num_hidden_layers * shape.hidden_size / _EXCHANGE_HIDDEN


def _basis(c: Configuration, constants: SpeedConstants) -> tuple[str, float, float]:
    """Where the constants come from, and the spreads of TPOT and TTFT."""
    title = c.devices[0].title
    if c.engine.name == "vllm-ascend":
        source = f"fitted on {constants.num_ascend} published figures of vLLM-Ascend"
        spread = constants.ascend_spread
        return source, spread, max(spread, constants.ttft_spread[1])
    if _is_measured(c, constants):
        source = f"fitted on published vLLM runs on {title}, not on this machine"
        return source, constants.tpot_spread[0], constants.ttft_spread[0]
    source = (
        "fitted on published vLLM runs on other hardware or engines; nothing like this was in it"
    )
    return source, constants.tpot_spread[1], constants.ttft_spread[1]


def _is_measured(c: Configuration, constants: SpeedConstants) -> bool:
    return (
        c.engine.name == "vllm"
        and c.hardware.num_nodes == 1
        and c.parallelism.pipeline == 1
        and c.devices[0].name in measured_accelerators(constants)
        and not c.cpu_offload_bytes
    )


def _estimate(value: float, spread: float, source: str) -> Estimate:
    return Estimate(value, value / (1 + spread), value * (1 + spread), source)
