"""The speed of a configuration under a workload: the fitted model, and what it was not fitted on.

Measured were tensor, data and expert parallel runs of vLLM on one node. Pipelines, other engines,
several nodes, offloading and other chips add constants with their sources; there the interval is
the wider one of accelerators that were not measured.
"""

from __future__ import annotations

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import MemoryPlan, kv_bytes_per_token, stage_layers
from m2serve.plan.speed_constants import load_constants, measured_accelerators
from m2serve.plan.speed_fit import SpeedConstants
from m2serve.plan.speed_model import Columns, SpeedPoint, dense_bytes, model_flops
from m2serve.plan.speed_model import tpot_ms as fitted_tpot_ms
from m2serve.plan.speed_model import ttft_ms as fitted_ttft_ms
from m2serve.records import Estimate, Speed, Workload

# (milliseconds a step on top, share of the bandwidth), by architecture. Ascend: published runs on
# A3 and A2, which are some 17 ms slower a step than bytes and the fitted constant explain.
_BY_ARCH = {"ascend-910b": (17.0, 0.5), "ascend-910c": (17.0, 0.5)}
# SGLang's published single streams on B200 and GB300 against vLLM's.
_SGLANG_MS = {"sm_100": 2.8, "sm_103": 2.8}
_CROSS_NODE_TENSOR_MS = 12.0  # 124 all-reduces over 200 GbE, 2 x DGX Spark
_HOP_MS = 0.3
_OWN_ENGINE_MS = 22.0  # without CUDA graphs
_HOST_LINK_BYTES_PER_MS = 50e6
_BOOKED_TFLOPS = 50.0
_FITTED_POWER_ARCH = "sm_120"
_FOUR_BIT = ("nvfp4", "mxfp4", "int4")


def predict(c: Configuration, memory: MemoryPlan, workload: Workload) -> Speed:
    """At the workload's concurrency, or what the KV cache holds of it."""
    constants = load_constants()
    request = workload.input_len + workload.output_len
    users = max(1.0, min(float(workload.concurrency), memory.kv_cache_tokens / request))
    columns = Columns([_point(c, workload, users)])
    fitted = fitted_tpot_ms(constants.tpot, columns)
    tpot = float(fitted[0]) + _extra_ms(c)
    ttft = float(fitted_ttft_ms(constants.ttft, columns, fitted)[0]) + _extra_ms(c)
    answer_ms = ttft + (workload.output_len - 1) * tpot
    ttft += max(0.0, workload.concurrency / users - 1) * answer_ms
    rate = users * workload.output_len / answer_ms * 1000
    is_measured = _is_measured(c, constants)
    source = _source(c, is_measured)
    tpot_spread = constants.tpot_spread[not is_measured]
    ttft_spread = constants.ttft_spread[not is_measured]
    return Speed(
        _estimate(ttft, ttft_spread, source),
        _estimate(tpot, tpot_spread, source),
        _estimate(rate, tpot_spread, source),
    )


def _point(c: Configuration, workload: Workload, users: float) -> SpeedPoint:
    cut = c.parallelism
    shape, whole = sizes(c.held)
    device = c.devices[0]
    kv = kv_bytes_per_token(shape, cut, shape.num_hidden_layers, c.kv_cache_dtype)
    kv_share = cut.prefill_context * cut.decode_context
    per_token, per_pair = model_flops(shape)
    ranks = cut.tensor * cut.prefill_context
    return SpeedPoint(
        accelerator=device.name,
        version=c.version if c.engine.name == "vllm" else "",
        is_four_bit=c.held.experts_format.startswith(_FOUR_BIT),
        num_devices=c.expert_shards,
        tensor=ranks,
        data=cut.data,
        expert_parallel=cut.expert_parallel,
        users=users,
        input_len=workload.input_len,
        output_len=workload.output_len,
        prefix_hit=min(workload.prefix_hit, 0.99) if workload.prefix_hit < 0.3 else 0.0,
        bandwidth_gb_per_s=_bandwidth(c),
        prefill_tflops=device.fp8_tflops or device.bf16_tflops or _BOOKED_TFLOPS,
        power_limit_w=_power_limit_w(c),
        expert_bytes=whole.experts,
        dense_bytes=dense_bytes(shape, whole.attention, whole.lm_head),
        kv_bytes_per_token=kv * min(ranks, 8) / kv_share,
        experts_per_token_share=shape.num_experts_per_tok / c.held.num_experts,
        prefill_flops_per_token=per_token * _cold_share(workload),
        attention_flops_per_pair=per_pair * _cold_share(workload),
    )


def _cold_share(workload: Workload) -> float:
    """Of the prompts' arithmetic, where the workload states how much of them is cached."""
    return 1.0 if workload.prefix_hit < 0.3 else 1.0 - workload.prefix_hit


def _bandwidth(c: Configuration) -> float:
    """Of one device; with stages, which follow one another, the harmonic mean by their layers."""
    cut, shape = c.parallelism, c.shape
    share = _BY_ARCH.get(c.arch, (0.0, 1.0))[1]
    per_stage = cut.tensor * cut.data * cut.prefill_context
    time = 0.0
    for stage, layers in enumerate(stage_layers(shape, cut)):
        device = c.devices[stage * per_stage]
        time += layers / shape.num_hidden_layers / device.bandwidth_gb_per_s
    return share / time


def _power_limit_w(c: Configuration) -> float:
    """Only where the energy of a step has been fitted."""
    device = c.devices[0]
    if device.arch != _FITTED_POWER_ARCH:
        return 0.0
    own = device.power_w if device.power_w < 450 else 0
    return float(c.hardware.power_limit_w or own)


def _extra_ms(c: Configuration) -> float:
    cut = c.parallelism
    extra = _BY_ARCH.get(c.arch, (0.0, 1.0))[0]
    if c.engine.name == "sglang":
        extra += _SGLANG_MS.get(c.arch, 0.0)
    if cut.tensor > c.devices_per_node:
        extra += _CROSS_NODE_TENSOR_MS
    if c.engine.name == "own":
        extra += _OWN_ENGINE_MS
    extra += cut.pipeline * c.cpu_offload_bytes / _HOST_LINK_BYTES_PER_MS
    return extra + (cut.pipeline - 1) * _HOP_MS


def _is_measured(c: Configuration, constants: SpeedConstants) -> bool:
    return (
        c.engine.name == "vllm"
        and c.parallelism.pipeline == 1
        and c.devices[0].name in measured_accelerators(constants)
        and not c.cpu_offload_bytes
    )


def _source(c: Configuration, is_measured: bool) -> str:
    if is_measured:
        return f"fitted on published vLLM runs on {c.devices[0].title}, not on this machine"
    return "fitted on published vLLM runs on other hardware or engines; nothing like this was in it"


def _estimate(value: float, spread: float, source: str) -> Estimate:
    return Estimate(value, value / (1 + spread), value * (1 + spread), source)
