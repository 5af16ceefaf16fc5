"""Runs scheduled steps: owns the model, the KV cache and the device.

ScheduledStep -> ForwardBatch -> logits -> token ids and logprobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import torch

from m2serve.checkpoint.reader import Checkpoint
from m2serve.engine.cache_size import check_config, kv_cache_size
from m2serve.engine.config import EngineConfig
from m2serve.engine.decode_ahead import make_decode_ahead
from m2serve.engine.placement import (
    DTYPES,
    KV_CACHE_DTYPES,
    choose_device,
    choose_dtype,
    choose_kv_cache_dtype,
    choose_max_num_batched_tokens,
    choose_num_threads,
    free_memory_bytes,
    has_cpu_kernels,
)
from m2serve.engine.request import EngineRequest, SamplingParams, TokenLogprob
from m2serve.engine.sampler import NOT_FINITE, Sampler
from m2serve.engine.sequence import Sequence
from m2serve.engine.step import ScheduledSequence, ScheduledStep, SequenceResult
from m2serve.engine.step_batch import StepBatcher
from m2serve.engine.structured_output_masks import StructuredOutputMasks
from m2serve.engine.validation import MAX_LOGPROBS
from m2serve.environment import this_machine
from m2serve.model.batch import KVCache
from m2serve.model.loader import load_model
from m2serve.model.minimax_m2 import MiniMaxM2, allocate_kv_cache
from m2serve.model.native import NativeMiniMaxM2

logger = logging.getLogger(__name__)

# Of the memory that is free after loading. On a CPU the rest of the machine lives there too.
KV_CACHE_SHARE = {"cuda": 0.9, "cpu": 0.5}
PROMPT_LOGITS_AT_ONCE = 128


class ModelRunner:
    """Made by `load`. `max_model_len` is the config's, the checkpoint's, or what the cache holds;
    `used_vocab_size` the number of ids that may be sampled, `eos_token_ids` those that
    generation_config.json names as the end. Structured output needs `masks`. `ahead`, where there
    is one, computes decode steps in place of `run` while Python goes on.
    """

    def __init__(
        self,
        model: MiniMaxM2,
        kv_cache: KVCache,
        *,
        max_model_len: int,
        used_vocab_size: int,
        eos_token_ids: tuple[int, ...] = (),
        masks: StructuredOutputMasks | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.max_model_len = max_model_len
        self.used_vocab_size = used_vocab_size
        self.eos_token_ids = eos_token_ids
        self._sampler = Sampler(used_vocab_size, masks)
        self._batcher = StepBatcher(kv_cache.block_size, self.device)
        self.ahead = make_decode_ahead(model, kv_cache, used_vocab_size)

    @classmethod
    def load(cls, config: EngineConfig, progress: Callable[[float], None]) -> ModelRunner:
        """Load the checkpoint and allocate the KV cache; raises M2Error."""
        machine = this_machine()
        device = choose_device(config)
        has_kernels = has_cpu_kernels(device)
        torch.set_num_threads(choose_num_threads(config, machine, has_kernels))
        dtype = choose_dtype(config, device, machine)
        choose_kv_cache_dtype(config, dtype, has_kernels)  # refused before the loading
        with Checkpoint.open(config.model_path) as checkpoint:
            check_config(config, checkpoint.shape)
            model = load_model(
                checkpoint,
                device,
                DTYPES[dtype],
                progress,
                attention_format=config.attention_format,
                head_format=config.head_format,
                cpu_activation=config.cpu_activation,
                free_bytes=free_memory_bytes(device),
            )
            eos_token_ids = _eos_token_ids(checkpoint)
        is_native = isinstance(model, NativeMiniMaxM2)
        kv_cache_dtype = choose_kv_cache_dtype(config, dtype, is_native)
        used_vocab_size = config.used_vocab_size or model.shape.vocab_size

        def with_blocks(num_blocks: int, max_model_len: int) -> ModelRunner:
            kv_cache = allocate_kv_cache(
                model.shape, num_blocks, config.block_size, device, KV_CACHE_DTYPES[kv_cache_dtype]
            )
            return cls(
                model,
                kv_cache,
                max_model_len=max_model_len,
                used_vocab_size=used_vocab_size,
                eos_token_ids=eos_token_ids,
                masks=StructuredOutputMasks(Path(config.model_path)),
            )

        activation_bytes = 0
        if device.type == "cuda":
            longest = config.max_model_len or model.shape.max_position_embeddings
            num_tokens = min(choose_max_num_batched_tokens(config, device), longest)
            small = with_blocks(-(-num_tokens // config.block_size), num_tokens)
            activation_bytes = _peak_bytes(small, num_tokens)
            del small
        size = kv_cache_size(
            config,
            model.shape,
            dtype=kv_cache_dtype,
            free_bytes=max(free_memory_bytes(device) - activation_bytes, 0),
            share=KV_CACHE_SHARE[device.type],
        )
        logger.info("max_model_len is %d: %s", size.max_model_len, size.reason)
        return with_blocks(size.num_blocks, size.max_model_len)

    @property
    def device(self) -> torch.device:
        return self.kv_cache.keys.device

    @property
    def dtype_name(self) -> str:
        return str(self.model.weights.dtype).removeprefix("torch.")

    @property
    def kv_cache_dtype_name(self) -> str:
        return str(self.kv_cache.keys.dtype).removeprefix("torch.")

    @property
    def native_s(self) -> float:
        """Seconds spent in the native library so far."""
        seconds = self._sampler.native_s
        if isinstance(self.model, NativeMiniMaxM2):
            seconds += self.model.step.native_s
        if self.ahead is not None:
            seconds += self.ahead.native_s
        return seconds

    @torch.inference_mode()
    def run(
        self, step: ScheduledStep, sequences: Mapping[str, Sequence]
    ) -> dict[str, SequenceResult]:
        """One forward pass; a result for each sequence of the step, by request id.

        What is under way of `ahead` is waited for and forgotten.
        """
        if self.ahead is not None:
            self.ahead.drain()
        batch = self._batcher.build(step)
        hidden = self.model.forward(batch, self.kv_cache)
        sampling = [scheduled.request_id for scheduled in step.sequences if scheduled.samples]
        sampled = self._sampler.sample(
            self.model.compute_logits(hidden[: len(sampling)]),
            [sequences[request_id] for request_id in sampling],
        )
        results = {scheduled.request_id: SequenceResult() for scheduled in step.sequences}
        results.update(zip(sampling, sampled, strict=True))
        row = len(sampling)
        for scheduled in step.sequences:
            request_id = scheduled.request_id
            if scheduled.prompt_targets:
                rows = hidden[row : row + scheduled.num_prompt_logits]
                row += scheduled.num_prompt_logits
                num_logprobs = sequences[request_id].sampling.prompt_logprobs or 0
                results[request_id] = self._with_prompt_logprobs(
                    results[request_id], scheduled.prompt_targets, rows, num_logprobs
                )
        return results

    def _with_prompt_logprobs(
        self,
        result: SequenceResult,
        targets: tuple[int, ...],
        hidden: torch.Tensor,
        num_logprobs: int,
    ) -> SequenceResult:
        """Slice by slice: the logits of a whole chunk would be gigabytes."""
        prompt_logprobs: list[list[TokenLogprob]] = []
        for start in range(0, len(targets), PROMPT_LOGITS_AT_ONCE):
            end = start + PROMPT_LOGITS_AT_ONCE
            logits = self.model.compute_logits(hidden[start:end])
            found = self._sampler.prompt_logprobs(logits, targets[start:end], num_logprobs)
            if found is None:
                return SequenceResult(error=NOT_FINITE)
            prompt_logprobs += found
        return msgspec.structs.replace(result, prompt_logprobs=prompt_logprobs)


def _eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Of generation_config.json, an id or a list; what is no id of the vocabulary is skipped."""
    given = checkpoint.generation_config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return tuple(id for id in ids if type(id) is int and 0 <= id < checkpoint.shape.vocab_size)


def _peak_bytes(runner: ModelRunner, num_tokens: int) -> int:
    """Memory of a CUDA device that the most expensive step needs for a moment."""
    torch.cuda.reset_peak_memory_stats(runner.device)
    before = torch.cuda.memory_allocated(runner.device)
    run_largest_step(runner, num_tokens)
    return int(torch.cuda.max_memory_allocated(runner.device)) - before


def run_largest_step(runner: ModelRunner, num_tokens: int) -> SequenceResult:
    """A step of `num_tokens` tokens in which every row wants logits and logprobs."""
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=MAX_LOGPROBS)
    prompt = [0] * num_tokens
    request = EngineRequest(request_id="largest", prompt_token_ids=prompt, sampling=sampling)
    scheduled = ScheduledSequence(
        request_id="largest",
        token_ids=tuple(prompt),
        start=0,
        block_ids=tuple(range(runner.kv_cache.num_blocks)),
        samples=True,
        prompt_targets=tuple(prompt[1:]),
    )
    sequence = Sequence(request, arrival=0, random_seed=0)
    return runner.run(ScheduledStep((scheduled,)), {"largest": sequence})["largest"]
