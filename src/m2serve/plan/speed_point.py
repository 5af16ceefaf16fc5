"""A configuration under a load as a point of the speed model."""

from __future__ import annotations

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import kv_bytes_per_token, stage_layers
from m2serve.plan.settings_ascend import draft_tokens
from m2serve.plan.speed_model import SpeedPoint, dense_bytes, model_flops
from m2serve.records import Workload

_BOOKED_TFLOPS = 50.0
_FITTED_POWER_ARCH = "sm_120"
_FOUR_BIT = ("nvfp4", "mxfp4", "int4")
# Below this share of cached prompt tokens some of every prompt is cold, above it most are warm.
_MOSTLY_CACHED = 0.3


def speed_point(c: Configuration, workload: Workload, users: float) -> SpeedPoint:
    """`users` run at once on one server; the workload's lengths and cached share."""
    cut = c.parallelism
    shape, whole = sizes(c.held)
    kv = kv_bytes_per_token(shape, cut, shape.num_hidden_layers, c.kv_cache_dtype)
    kv_share = cut.prefill_context * cut.decode_context
    per_token, per_pair = model_flops(shape)
    ranks = cut.tensor * cut.prefill_context
    is_cold = workload.prefix_hit < _MOSTLY_CACHED
    cold_share = 1.0 if is_cold else 1.0 - workload.prefix_hit
    return SpeedPoint(
        accelerator=c.devices[0].name,
        version=c.version if c.engine.name == "vllm" else "",
        is_four_bit=c.held.experts_format.startswith(_FOUR_BIT),
        num_devices=c.expert_shards,
        tensor=ranks,
        data=cut.data,
        expert_parallel=cut.expert_parallel,
        users=users,
        input_len=workload.input_len,
        output_len=workload.output_len,
        prefix_hit=workload.prefix_hit if is_cold else 0.0,
        bandwidth_gb_per_s=_bandwidth(c),
        prefill_tflops=_prefill_tflops(c),
        power_limit_w=_power_limit_w(c),
        expert_bytes=whole.experts,
        dense_bytes=dense_bytes(shape, whole.attention, whole.lm_head),
        kv_bytes_per_token=kv * min(ranks, 8) / kv_share,
        experts_per_token_share=shape.num_experts_per_tok / c.held.num_experts,
        prefill_flops_per_token=per_token * cold_share,
        attention_flops_per_pair=per_pair * cold_share,
        draft_tokens=draft_tokens(workload.input_len) if c.draft else 0,
    )


def _bandwidth(c: Configuration) -> float:
    """Of one device; with stages, which follow one another, the harmonic mean by their layers."""
    cut, shape = c.parallelism, c.shape
    per_stage = cut.tensor * cut.data * cut.prefill_context
    time = 0.0
    for stage, layers in enumerate(stage_layers(shape, cut)):
        device = c.devices[stage * per_stage]
        time += layers / shape.num_hidden_layers / device.bandwidth_gb_per_s
    return 1 / time


def _prefill_tflops(c: Configuration) -> float:
    device = c.devices[0]
    if c.held.quantization == "w8a8" and device.int8_tflops:
        return device.int8_tflops
    return device.fp8_tflops or device.bf16_tflops or _BOOKED_TFLOPS


def _power_limit_w(c: Configuration) -> float:
    """Only where the energy of a step has been fitted."""
    device = c.devices[0]
    if device.arch != _FITTED_POWER_ARCH:
        return 0.0
    own = device.power_w if device.power_w < 450 else 0
    return float(c.hardware.power_limit_w or own)
