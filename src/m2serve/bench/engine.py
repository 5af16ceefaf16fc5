"""How fast the engine is by itself: no HTTP, the real scheduler, sampler and model.

All sequences start together, so the run has two regimes: prefill, until every sequence has its
first token, and decode, one token a sequence a step. Rates are of tokens through the engine; bytes
are those of weights and KV cache that a decode step has to read.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field

import torch

from m2serve.bench.bandwidth import read_bandwidth_gb_per_s
from m2serve.bench.dummy import dummy_model
from m2serve.bench.operations import OperationMeter
from m2serve.engine.config import EngineConfig
from m2serve.engine.engine import Engine
from m2serve.engine.model_runner import ModelRunner
from m2serve.engine.request import EngineInfo, EngineRequest, SamplingParams
from m2serve.errors import UsageError
from m2serve.kernels.dispatch import select_kernels
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache
from m2serve.spec.cost import count_parameters, kv_elements_per_token
from m2serve.spec.shape import ModelShape

BLOCK_SIZE = 16


@dataclass(frozen=True)
class EngineBenchConfig:
    """`prompt` and `output` are tokens a sequence; `output` counts the one prefill gives."""

    shape: ModelShape
    format: str
    attention_format: str = "bf16"
    batch: int = 1
    prompt: int = 512
    output: int = 64
    num_threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class EngineBenchResult:
    """Of decode, medians over its steps. `decode_bytes` are those a step reads: weights, of the
    experts those hit, and KV cache; `bandwidth_share` is their rate over the measured roof.
    `operations_s` adds up to `decode_step_s`; its "rest" is scheduler, sampler and Python.
    """

    parameters: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_step_s: float
    decode_layer_s: float
    decode_bytes: int
    decode_gb_per_s: float
    read_bandwidth_gb_per_s: float
    bandwidth_share: float
    operations_s: dict[str, float]
    implementations: dict[str, str]


@dataclass(frozen=True)
class _Timings:
    """`weight_bytes` and `operations_s` are a decode step's mean."""

    prefill_s: float
    decode_step_s: float
    weight_bytes: int
    operations_s: dict[str, float]


def run_engine_bench(config: EngineBenchConfig) -> EngineBenchResult:
    """Build the dummy model, warm up, measure the roof, then prefill and decode once."""
    if config.batch < 1 or config.prompt < 1 or config.output < 2:
        raise UsageError("--batch and --prompt have to be at least 1, --output at least 2")
    torch.set_num_threads(config.num_threads)
    meter = OperationMeter(config.device)
    kernels = select_kernels(config.device)
    model = dummy_model(
        config.shape,
        config.format,
        attention_format=config.attention_format,
        device=config.device,
        dtype=config.dtype,
        kernels=meter.wrap(kernels),
    )
    meter.lm_head = model.weights.lm_head
    engine = _engine(config, model)
    _measure(engine, config, meter, prompt=min(config.prompt, 32), output=2)
    roof = read_bandwidth_gb_per_s(config.device)
    timings = _measure(engine, config, meter, prompt=config.prompt, output=config.output)
    return _result(config, timings, roof, kernels.describe())


def _result(
    config: EngineBenchConfig, timings: _Timings, roof: float, implementations: dict[str, str]
) -> EngineBenchResult:
    context = config.prompt + config.output // 2
    kv_bytes = config.batch * context * kv_elements_per_token(config.shape) * config.dtype.itemsize
    decode_bytes = timings.weight_bytes + kv_bytes
    gb_per_s = decode_bytes / timings.decode_step_s / 1e9
    operations_s = timings.operations_s
    in_layers_s = sum(operations_s.values()) - operations_s.get("lm_head", 0.0)
    rest_s = timings.decode_step_s - sum(operations_s.values())
    return EngineBenchResult(
        parameters=count_parameters(config.shape).total,
        prefill_tokens_per_s=config.batch * config.prompt / timings.prefill_s,
        decode_tokens_per_s=config.batch / timings.decode_step_s,
        decode_step_s=timings.decode_step_s,
        decode_layer_s=in_layers_s / config.shape.num_hidden_layers,
        decode_bytes=decode_bytes,
        decode_gb_per_s=gb_per_s,
        read_bandwidth_gb_per_s=roof,
        bandwidth_share=gb_per_s / roof,
        operations_s={**operations_s, "rest": rest_s},
        implementations=implementations,
    )


def _engine(config: EngineBenchConfig, model: MiniMaxM2) -> Engine:
    """An engine whose KV cache holds the batch, and that prefills as the server does."""
    max_model_len = config.prompt + config.output + 1
    num_blocks = config.batch * -(-max_model_len // BLOCK_SIZE) + config.batch
    kv_cache = allocate_kv_cache(config.shape, num_blocks, BLOCK_SIZE, config.device, config.dtype)
    runner = ModelRunner(
        model, kv_cache, max_model_len=max_model_len, used_vocab_size=config.shape.vocab_size
    )
    info = EngineInfo(
        model="dummy",
        device=str(config.device),
        dtype=runner.dtype_name,
        max_model_len=max_model_len,
        vocab_size=config.shape.vocab_size,
        used_vocab_size=config.shape.vocab_size,
        max_num_seqs=config.batch,
        max_num_batched_tokens=EngineConfig(model_path="").max_num_batched_tokens,
        num_kv_blocks=num_blocks,
        kv_block_size=BLOCK_SIZE,
        enable_prefix_caching=False,
        load_time_s=0.0,
    )
    return Engine(runner, info)


def _measure(
    engine: Engine, config: EngineBenchConfig, meter: OperationMeter, *, prompt: int, output: int
) -> _Timings:
    chooser = random.Random(0)
    sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    for index in range(config.batch):
        ids = [chooser.randrange(config.shape.vocab_size) for _ in range(prompt)]
        engine.add(EngineRequest(request_id=str(index), prompt_token_ids=ids, sampling=sampling))
    waiting = {str(index) for index in range(config.batch)}
    start = time.perf_counter()
    while waiting:
        waiting -= {result.request_id for result in engine.step() if result.token_ids}
    prefill_s = time.perf_counter() - start
    meter.reset()
    steps_s = []
    while engine.has_work():
        start = time.perf_counter()
        engine.step()
        steps_s.append(time.perf_counter() - start)
    mean_s = statistics.mean(steps_s)
    step_s = statistics.median(steps_s)
    # Shares of the operations are means; scaled to the median step, so that both agree.
    scale = step_s / mean_s / len(steps_s)
    return _Timings(
        prefill_s=prefill_s,
        decode_step_s=step_s,
        weight_bytes=meter.weight_bytes // len(steps_s),
        operations_s={
            name: seconds * scale
            for name, seconds in sorted(meter.seconds.items(), key=lambda item: -item[1])
        },
    )
