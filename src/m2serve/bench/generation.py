"""One measured pass of the engine: all sequences start together, then each gets token by token.

The scheduler, the sampler and the model are those of the server; there is no HTTP and no process
between them.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import torch

from m2serve.bench.operations import Costs, OperationMeter, StepMeter
from m2serve.engine.block_pool import BlockPool
from m2serve.engine.config import DEFAULT_BATCHED_TOKENS
from m2serve.engine.model_runner import ModelRunner
from m2serve.engine.placement import KV_CACHE_DTYPES, free_memory_bytes
from m2serve.engine.request import EngineRequest, SamplingParams
from m2serve.engine.scheduler import Scheduler
from m2serve.engine.step_loop import StepLoop
from m2serve.errors import ResourceError, UsageError
from m2serve.model.batch import KVCache
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache
from m2serve.spec.cost import kv_slot_bytes

BLOCK_SIZE = 16


@dataclass(frozen=True)
class EngineBenchConfig:
    """`context`, `prompt` and `output` are tokens a sequence: in the cache already, computed
    first, and generated (the one prefill gives included). `kv_cache_dtype` is a key of
    KV_CACHE_DTYPES.
    """

    batch: int = 1
    prompt: int = 512
    output: int = 64
    context: int = 0
    repeat: int = 3
    kv_cache_dtype: str = "float32"

    def check(self, max_position_embeddings: int) -> None:
        """Raise UsageError for a pass that measures nothing or that the model cannot hold."""
        if min(self.batch, self.prompt, self.repeat) < 1 or self.output < 2:
            raise UsageError(
                "--batch, --prompt and --repeat have to be at least 1, --output at least 2"
            )
        if self.context < 0 or self.context % BLOCK_SIZE:
            raise UsageError(f"--context is {self.context}; a multiple of {BLOCK_SIZE} is needed")
        if self.longest > max_position_embeddings:
            raise UsageError(
                f"--context {self.context}, --prompt {self.prompt} and --output {self.output} make "
                f"up to {self.longest} tokens a sequence; the model has {max_position_embeddings} "
                "positions"
            )

    @property
    def longest(self) -> int:
        """Tokens a sequence can reach: the first to be prefilled generates while others are. On the
        device with the smallest steps.
        """
        most_per_step = max(min(DEFAULT_BATCHED_TOKENS.values()) - self.batch, 1)
        prefill_steps = self.batch * self.prompt // most_per_step + 1
        return self.context + self.prompt + self.output + (prefill_steps if self.batch > 1 else 0)


@dataclass(frozen=True)
class Pass:
    """`decode_step_s` is the mean of the steps in which every sequence gets one token; `costs` are
    such a step's.
    """

    prefill_s: float
    decode_step_s: float
    costs: Costs


def make_runner(model: MiniMaxM2, config: EngineBenchConfig, kv_cache: KVCache) -> ModelRunner:
    return ModelRunner(
        model,
        kv_cache,
        max_model_len=config.longest + 1,
        used_vocab_size=model.shape.vocab_size,
    )


def make_cache(model: MiniMaxM2, config: EngineBenchConfig) -> KVCache:
    """Room for the batch; noise where the context is, since what was never written may be NaN.

    Raises ResourceError for more than the memory that is free.
    """
    num_blocks = config.batch * (-(-(config.longest + 1) // BLOCK_SIZE) + 1)
    device = model.weights.device
    needed = num_blocks * BLOCK_SIZE * kv_slot_bytes(model.shape, config.kv_cache_dtype)
    free = free_memory_bytes(device)
    if needed > free:
        raise ResourceError(
            f"the KV cache of {config.batch} sequences of {config.longest} tokens takes "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; give a smaller --batch, "
            "--context, --prompt or --output"
        )
    dtype = KV_CACHE_DTYPES[config.kv_cache_dtype]
    cache = allocate_kv_cache(model.shape, num_blocks, BLOCK_SIZE, device, dtype)
    if config.context:
        most = 1.0 if dtype.is_floating_point else 127.0
        generator = torch.Generator(device).manual_seed(0)
        for part in (cache.keys, cache.values):
            block = torch.empty(part.shape[2:], device=device)
            part.copy_(block.uniform_(-most, most, generator=generator))
        for scales in (cache.key_scales, cache.value_scales):
            if scales is not None:
                scales.fill_(1 / most)
    return cache


def run_pass(
    runner: ModelRunner, config: EngineBenchConfig, meter: OperationMeter | StepMeter
) -> Pass:
    """Prefill every sequence, then `output` - 1 decode steps of the whole batch."""
    scheduler = _scheduler(runner, config)
    loop = StepLoop(scheduler, runner)
    chooser = random.Random(0)
    sampling = SamplingParams(max_tokens=config.longest, temperature=0.0, ignore_eos=True)
    for index in range(config.batch):
        num_tokens = config.context + config.prompt
        ids = chooser.choices(range(runner.used_vocab_size), k=num_tokens)
        _assume_computed(scheduler.pool, ids[: config.context])
        scheduler.add(EngineRequest(request_id=str(index), prompt_token_ids=ids, sampling=sampling))
    waiting = {str(index) for index in range(config.batch)}
    start = time.perf_counter()
    while waiting:
        waiting -= {output.request_id for output in loop.step(run_ahead=False)}
    prefilled = time.perf_counter()
    meter.reset()
    num_steps = config.output - 1
    for left in reversed(range(num_steps)):
        loop.step(run_ahead=left > 0)
    decode_s = time.perf_counter() - prefilled
    costs = meter.take()
    seconds = {name: total / num_steps for name, total in costs.seconds.items()}
    return Pass(
        prefill_s=prefilled - start,
        decode_step_s=decode_s / num_steps,
        costs=Costs(seconds, costs.weight_bytes // num_steps),
    )


def _scheduler(runner: ModelRunner, config: EngineBenchConfig) -> Scheduler:
    return Scheduler(
        BlockPool(runner.kv_cache.num_blocks, BLOCK_SIZE, secret=bytes(16)),
        max_model_len=runner.max_model_len,
        max_num_seqs=config.batch,
        max_num_batched_tokens=max(DEFAULT_BATCHED_TOKENS[runner.device.type], config.batch),
        enable_prefix_caching=config.context > 0,
        seed=0,
    )


def _assume_computed(pool: BlockPool, token_ids: list[int]) -> None:
    """Let the prefix cache find these tokens, whatever their blocks hold."""
    block_ids = pool.allocate(len(token_ids) // pool.block_size)
    key = pool.root_key(b"")
    for index, block in enumerate(block_ids):
        start = index * pool.block_size
        key = pool.block_key(key, token_ids[start : start + pool.block_size])
        pool.cache_full_block(block, key)
    pool.free(block_ids)
