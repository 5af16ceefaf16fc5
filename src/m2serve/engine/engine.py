"""The engine in one object: add requests, run steps, abort. Also the offline Python API.

    engine = Engine.load("folder", dtype="float32")
    [completion] = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=16))

Ids in, ids out; text is not the engine's business. Not safe for several threads.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from m2serve.engine.block_pool import BlockPool
from m2serve.engine.config import EngineConfig
from m2serve.engine.model_runner import ModelRunner
from m2serve.engine.placement import choose_max_num_batched_tokens
from m2serve.engine.request import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    SamplingParams,
    TokenLogprob,
)
from m2serve.engine.scheduler import Scheduler
from m2serve.engine.step_loop import StepLoop
from m2serve.engine.validation import check_request
from m2serve.errors import CheckpointError

logger = logging.getLogger(__name__)

Progress = Callable[[float], None]


@dataclass
class Completion:
    """What became of one prompt; fields as in EngineOutput, of all steps together."""

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[TokenLogprob]] | None = None
    prompt_logprobs: list[list[TokenLogprob] | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None

    def take(self, output: EngineOutput) -> None:
        self.token_ids += output.token_ids
        if output.logprobs is not None:
            self.logprobs = (self.logprobs or []) + output.logprobs
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = output.finish_reason
        self.stop_token_id = output.stop_token_id
        self.num_cached_tokens = output.num_cached_tokens
        self.error = output.error


class Engine:
    """Scheduler, model runner, and the loop of both; made by `load`."""

    def __init__(self, runner: ModelRunner, info: EngineInfo) -> None:
        self.info = info
        self._runner = runner
        self._loop = self._new_loop()
        self._busy_s = 0.0
        self._native_s_before = 0.0
        self._step_ended_s: float | None = None  # None: nothing was left to compute

    @classmethod
    def load(
        cls,
        config: EngineConfig | str | Path,
        *,
        progress: Progress = lambda fraction: None,
        **overrides: Any,
    ) -> Engine:
        """Load a checkpoint folder and return when it has generated a token.

        `overrides` are fields of EngineConfig. `progress` is called with the fraction loaded.
        Raises ConfigError, CheckpointError, UsageError, ResourceError.
        """
        started_s = time.monotonic()
        if not isinstance(config, EngineConfig):
            config = EngineConfig(model_path=str(config))
        config = msgspec.structs.replace(config, **overrides)
        runner = ModelRunner.load(config, progress)
        info = EngineInfo(
            model=config.model_path,
            device=str(runner.device),
            dtype=runner.dtype_name,
            max_model_len=runner.max_model_len,
            vocab_size=runner.model.shape.vocab_size,
            used_vocab_size=runner.used_vocab_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=choose_max_num_batched_tokens(config, runner.device),
            num_kv_blocks=runner.kv_cache.num_blocks,
            kv_block_size=runner.kv_cache.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            load_time_s=0.0,
            precision=_precision(config, runner),
            weight_bytes=runner.model.weights.nbytes,
            weight_bytes_saved=runner.model.weights.bytes_saved,
        )
        engine = cls(runner, info)
        engine._generate_first_tokens()
        load_time_s = time.monotonic() - started_s
        engine.info = msgspec.structs.replace(info, load_time_s=load_time_s)
        return engine

    # Step by step

    def add(self, request: EngineRequest) -> None:
        """Queue a request; raises RequestError, and then nothing has changed."""
        check_request(request, self.info)
        self._scheduler.add(request)

    def abort(self, request_ids: Iterable[str]) -> list[EngineOutput]:
        """End requests; the last output of each. Unknown and finished ones are passed over."""
        outputs = [self._scheduler.abort(request_id) for request_id in request_ids]
        if not self.has_work():
            self._step_ended_s = None
        return [output for output in outputs if output is not None]

    def has_work(self) -> bool:
        return self._scheduler.has_unfinished()

    def step(self) -> list[EngineOutput]:
        """One forward pass over what the scheduler chooses; the next may be under way on return.

        A request that fails by itself (NaN in its logits) gets an output with its error. An
        exception means that the engine cannot go on.
        """
        if not self.has_work():
            return []
        started_s = time.perf_counter() if self._step_ended_s is None else self._step_ended_s
        outputs = self._loop.step()
        now_s = time.perf_counter()
        self._busy_s += now_s - started_s
        self._step_ended_s = now_s if self.has_work() else None
        return outputs

    def layers_computed(self) -> int:
        """So far, of all forward passes; for any thread, to see that a long step goes on."""
        return self._runner.model.layers_computed()

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(
            self._scheduler.stats(),
            busy_s=self._busy_s,
            native_s=self._runner.native_s - self._native_s_before,
        )

    # Offline

    def generate(self, prompts: Sequence[list[int]], sampling: SamplingParams) -> list[Completion]:
        """Generate one completion for each prompt, all together; for an engine without other work.

        Without `eos_token_ids` the sampling gets the checkpoint's, of generation_config.json.
        Raises RequestError for the first prompt that cannot be served, before any is computed.
        """
        assert not self.has_work(), "outputs of other requests would be lost"
        if not sampling.eos_token_ids:
            eos_token_ids = self._runner.eos_token_ids
            sampling = msgspec.structs.replace(sampling, eos_token_ids=eos_token_ids)
        requests = [
            EngineRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling)
            for index, prompt in enumerate(prompts)
        ]
        for request in requests:
            check_request(request, self.info)
        completions = [Completion(prompt) for prompt in prompts]
        try:
            for request in requests:
                self._scheduler.add(request)
            while self.has_work():
                for output in self.step():
                    completions[int(output.request_id)].take(output)
        finally:
            self.abort([request.request_id for request in requests])
        return completions

    def _generate_first_tokens(self) -> None:
        """One prefill and one decode step, which leave no trace in the counters."""
        sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        prompt = [0] * min(2, self._scheduler.max_seq_len - 1)  # of one token it would be a decode
        [completion] = self.generate([prompt], sampling)
        if completion.error is not None:
            raise CheckpointError(f"The model gives no token: {completion.error}")
        self._loop = self._new_loop()
        self._busy_s = 0.0
        self._native_s_before = self._runner.native_s

    @property
    def _scheduler(self) -> Scheduler:
        return self._loop.scheduler

    def _new_loop(self) -> StepLoop:
        info = self.info
        scheduler = Scheduler(
            BlockPool(info.num_kv_blocks, info.kv_block_size, secret=secrets.token_bytes(32)),
            max_model_len=info.max_model_len,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            enable_prefix_caching=info.enable_prefix_caching,
            seed=secrets.randbits(63),
        )
        return StepLoop(scheduler, self._runner)


def _precision(config: EngineConfig, runner: ModelRunner) -> str:
    requantised = (("attention", config.attention_format), ("head", config.head_format))
    words = [runner.model.precision(), f"KV {runner.kv_cache_dtype_name}"]
    words += [f"{part} {format}" for part, format in requantised if format]
    return ", ".join(words)
