"""How fast the engine is by itself, and how that compares with what the memory could deliver.

A run has two regimes: prefill, until every sequence has its first token, and decode, one token a
sequence a step. Bytes are those of weights and KV cache that a decode step has to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from m2serve.bench.bandwidth import read_bandwidth_gb_per_s
from m2serve.bench.generation import EngineBenchConfig, Pass, make_cache, make_runner, run_pass
from m2serve.bench.memory import peak_memory_bytes, reset_peak_memory
from m2serve.bench.operations import OperationMeter, StepMeter
from m2serve.kernels.cpu_library import describe_cpu_kernels
from m2serve.kernels.cpu_step import OPERATIONS
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.model.native import NativeMiniMaxM2
from m2serve.spec.cost import count_parameters, kv_slot_bytes

_WARM_UP_PROMPT = 32


@dataclass(frozen=True)
class Spread:
    """Of the repeats; of an even number the median is the higher one of the middle."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        ordered = sorted(values)
        return cls(ordered[len(ordered) // 2], ordered[0], ordered[-1])


@dataclass(frozen=True)
class EngineBenchResult:
    """Everything about a step is of the repeat with the median decode rate.

    `decode_bytes` are those a step reads: weights, of the experts those that are hit, and KV
    cache; `decode_bytes_per_token` divides them by the batch. `bandwidth_share` is their rate over
    the roof, which is measured before and after, and the higher counts. `operations_s` adds up to
    `decode_step_s`; its "rest" is scheduler, sampler, Python, and what the model does between its
    operations. `peak_memory_bytes` is of the repeats, weights included.
    """

    parameters: int
    weight_bytes: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    decode_step_s: float
    decode_layer_s: float
    decode_bytes: int
    decode_bytes_per_token: float
    decode_gb_per_s: float
    read_bandwidth_gb_per_s: float
    bandwidth_share: float
    peak_memory_bytes: int
    operations_s: dict[str, float]
    implementations: dict[str, str]


def run_engine_bench(model: MiniMaxM2, config: EngineBenchConfig) -> EngineBenchResult:
    """Measure the roof, warm up, then prefill and decode `repeat` times.

    Raises UsageError for a config that measures nothing or does not fit the model.
    """
    config.check(model.shape.max_position_embeddings)
    device = model.weights.device
    roof_gb_per_s = read_bandwidth_gb_per_s(device)
    metered, meter, implementations = _metered(model)
    kv_cache = make_cache(model, config)
    reset_peak_memory(device)
    # On a GPU a metered operation is waited for, which would slow the step it is part of.
    timed = metered if device.type == "cpu" else model
    warm_up = replace(config, prompt=min(config.prompt, _WARM_UP_PROMPT), output=2)
    run_pass(make_runner(timed, warm_up, kv_cache), warm_up, meter)
    runner = make_runner(timed, config, kv_cache)
    passes = [run_pass(runner, config, meter) for _ in range(config.repeat)]
    typical = sorted(passes, key=lambda one: -one.decode_step_s)[len(passes) // 2]
    peak_bytes = peak_memory_bytes(device)
    dissected = typical
    if timed is not metered:
        dissected = run_pass(make_runner(metered, config, kv_cache), config, meter)
    roof_gb_per_s = max(roof_gb_per_s, read_bandwidth_gb_per_s(device))
    operations_s = _operations(dissected, typical.decode_step_s)
    in_layers_s = sum(operations_s.values()) - operations_s["rest"] - operations_s["lm_head"]
    decode_bytes = dissected.costs.weight_bytes + _kv_bytes(model, config)
    gb_per_s = decode_bytes / typical.decode_step_s / 1e9
    return EngineBenchResult(
        parameters=count_parameters(model.shape).total,
        weight_bytes=model.weights.nbytes,
        prefill_tokens_per_s=Spread.of(
            [config.batch * config.prompt / one.prefill_s for one in passes]
        ),
        decode_tokens_per_s=Spread.of([config.batch / one.decode_step_s for one in passes]),
        decode_step_s=typical.decode_step_s,
        decode_layer_s=in_layers_s / model.shape.num_hidden_layers,
        decode_bytes=decode_bytes,
        decode_bytes_per_token=decode_bytes / config.batch,
        decode_gb_per_s=gb_per_s,
        read_bandwidth_gb_per_s=roof_gb_per_s,
        bandwidth_share=gb_per_s / roof_gb_per_s,
        peak_memory_bytes=peak_bytes,
        operations_s=operations_s,
        implementations=implementations,
    )


def _metered(
    model: MiniMaxM2,
) -> tuple[MiniMaxM2, OperationMeter | StepMeter, dict[str, str]]:
    """The model with its operations measured, the meter, and what computes each operation."""
    if isinstance(model, NativeMiniMaxM2):
        return model, StepMeter(model), dict.fromkeys(OPERATIONS, describe_cpu_kernels())
    meter = OperationMeter(model.weights.device)
    meter.lm_head = model.weights.lm_head
    metered = MiniMaxM2(model.shape, model.weights, meter.wrap(model.kernels))
    described = model.kernels.describe()
    return metered, meter, {**described, "lm_head": described["linear"]}


def _operations(dissected: Pass, decode_step_s: float) -> dict[str, float]:
    """Seconds by operation, the longest first, scaled from the dissected step to this one."""
    seconds = dissected.costs.seconds
    scale = decode_step_s / dissected.decode_step_s
    longest_first = sorted(seconds, key=lambda name: -seconds[name])
    operations_s = {name: seconds[name] * scale for name in longest_first}
    operations_s["rest"] = decode_step_s - sum(operations_s.values())
    return operations_s


def _kv_bytes(model: MiniMaxM2, config: EngineBenchConfig) -> int:
    """Keys and values a decode step reads, halfway through the output."""
    seen = config.context + config.prompt + config.output // 2
    return config.batch * seen * kv_slot_bytes(model.shape, config.kv_cache_dtype)
