"""Speed of a configuration from bytes and a constant a step; the constants are published fits.

TPOT = c0 + bytes of a step / (bandwidth x efficiency) + prefill of others' prompts. With a batch of
n tokens and uniform routing a layer reads E(1 - (1 - k/E)^n) of its E experts. Stages follow one
another, so only one stage's bandwidth counts at a time.
"""

from __future__ import annotations

from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import MemoryPlan, kv_bytes_per_token, stage_layers
from m2serve.records import Estimate, Speed, Workload

# (milliseconds a step beside its bytes, share of the bandwidth, share of the BF16 arithmetic in
# prefill): vLLM 0.15 to 0.19 on H100, H200, B200, B300 and RTX Pro 6000, residuals and fits.
_BY_ARCH = {
    "sm_90": (8.1, 0.85, 0.33),
    "sm_100": (6.9, 0.80, 0.33),
    "sm_103": (6.9, 0.80, 0.33),
    "sm_120": (7.5, 1.0, 0.33),
    "ascend-910b": (25.0, 0.5, 0.33),
    "ascend-910c": (25.0, 0.5, 0.33),
}
_OTHERS = (10.0, 0.75, 0.33)
_NVFP4_C0 = {"sm_100": 4.5, "sm_103": 4.5}
_SGLANG_EXTRA_MS = {"sm_100": 2.8, "sm_103": 2.8}
_CROSS_NODE_TENSOR_MS = 12.0
_HOP_MS = 0.3
# Four ranks prefill 1.58 times as fast as one (B200, 8,192 tokens).
_PREFILL_SCALING = 0.33
_EAGER_MS = 30.0
_HOST_LINK_BYTES_PER_MS = 50e6
_BOOKED_TFLOPS = 50.0
# Share of a prefill that decode steps wait for; and measured first tokens over their arithmetic.
_INTERFERENCE = 0.6
_TTFT_FACTOR = 2.5
_SPREAD, _TTFT_SPREAD = 0.25, 0.6
SOURCE = "fits of published measurements, not of this machine"


def predict(c: Configuration, memory: MemoryPlan, workload: Workload) -> Speed:
    """At the workload's concurrency, or what the KV cache holds of it."""
    request = workload.input_len + workload.output_len
    users = max(1, min(workload.concurrency, memory.kv_cache_tokens // request))
    prefill_ms = _prefill_ms(c, workload)
    interference = _INTERFERENCE * users * prefill_ms / workload.output_len
    tpot = _step_ms(c, users, workload.input_len + workload.output_len // 2) + interference
    waiting = (users - 1) / 2 * prefill_ms / max(1.0, workload.output_len * tpot / prefill_ms)
    ttft = _TTFT_FACTOR * (_constant_ms(c) + prefill_ms + waiting)
    total = users * workload.output_len / (ttft + (workload.output_len - 1) * tpot) * 1000
    return Speed(_estimate(ttft, _TTFT_SPREAD), _estimate(tpot), _estimate(total))


def _step_ms(c: Configuration, users: int, context: int) -> float:
    """One decode step; the stages one after another."""
    cut = c.parallelism
    shape, whole = sizes(c.held)
    efficiency = _BY_ARCH.get(c.arch, _OTHERS)[1]
    share = 1 - (1 - shape.num_experts_per_tok / c.held.num_experts) ** users
    each = -(-users // cut.data)
    experts = whole.experts * share / c.expert_shards
    attention = (whole.attention + whole.router) / cut.tensor
    per_stage = cut.tensor * cut.data * cut.prefill_context
    step = _constant_ms(c)
    for stage, layers in enumerate(stage_layers(shape, cut)):
        bandwidth = c.devices[stage * per_stage].bandwidth_gb_per_s * 1e6 * efficiency
        part = layers / shape.num_hidden_layers
        tokens = each * context / cut.prefill_context / cut.decode_context
        kv = tokens * kv_bytes_per_token(shape, cut, layers, c.kv_cache_dtype)
        read = (experts + attention) * part + kv
        read += whole.lm_head / cut.tensor if stage == cut.pipeline - 1 else 0
        offloaded = min(c.cpu_offload_bytes, read)
        step += (read - offloaded) / bandwidth + offloaded / _HOST_LINK_BYTES_PER_MS
    return step


def _constant_ms(c: Configuration) -> float:
    cut = c.parallelism
    constant = _BY_ARCH.get(c.arch, _OTHERS)[0]
    if c.held.quantization == "nvfp4":
        constant = _NVFP4_C0.get(c.arch, constant)
    if c.engine.name == "sglang":
        constant += _SGLANG_EXTRA_MS.get(c.arch, 0.0)
    if cut.tensor > c.devices_per_node:
        constant += _CROSS_NODE_TENSOR_MS
    if c.engine.name == "own":
        constant = _EAGER_MS
    return constant + (cut.pipeline - 1) * _HOP_MS


def _prefill_ms(c: Configuration, workload: Workload) -> float:
    """Of one prompt, by arithmetic: two operations a weight and token, and attention."""
    shape = c.shape
    cold = workload.input_len * (1 - workload.prefix_hit)
    share = _BY_ARCH.get(c.arch, _OTHERS)[2]
    active = 9.8e9 * 2 * cold
    attention = 4 * shape.num_hidden_layers * shape.q_size * cold * workload.input_len / 2
    cut = c.parallelism
    tflops = c.devices[0].bf16_tflops or _BOOKED_TFLOPS
    ranks = (cut.tensor * cut.prefill_context) ** _PREFILL_SCALING
    return (active + attention) / (tflops * share * ranks * 1e9)


def _estimate(value: float, spread: float = _SPREAD) -> Estimate:
    return Estimate(value, value * (1 - spread), value * (1 + spread), SOURCE)
