"""Which tokens run in the next step, and what became of the step before.

Continuous batching with chunked prefill: a step holds at most `max_num_batched_tokens` tokens of
at most `max_num_seqs` sequences. Running sequences come first, then waiting ones, both in order of
arrival. When blocks run out, the newest running sequence gives up its own and waits again at the
front; it keeps what it generated and computes it anew.

Nothing starves. Every running sequence arrived before every waiting one: admission moves the
oldest waiting one to the end of `running`, preemption moves it back. So the oldest request runs in
every step, is never preempted by another, fits alone (`max_seq_len`), and ends after at most
max_tokens outputs; then the next is the oldest. And since a sequence is admitted only when the
budget reaches past all others, at most the newest running one is in the middle of its prefill:
decoding sequences are never behind a prefill that takes the whole budget.

Pure: no tensors, no clock. Counts are decided in `schedule`, token values arrive in `update`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from m2serve.engine.block_pool import BlockPool
from m2serve.engine.prefix_cache import cache_full_blocks, find_cached_prefix
from m2serve.engine.request import EngineOutput, EngineRequest, EngineStats, FinishReason
from m2serve.engine.sequence import Sequence
from m2serve.engine.step import PENDING, ScheduledSequence, ScheduledStep, SequenceResult
from m2serve.errors import RequestError


class Scheduler:
    """Owner of all sequences and of the block pool.

    `schedule`, the forward pass and `update` alternate; one `schedule_ahead` may come before each
    `update`, and then no `schedule` until the step it gave has been through `update`, or is
    thrown away because it `is_awaited` no more. `add` and `abort` may come at any moment between.
    `seed` feeds the random numbers of requests that bring no seed of their own.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool,
        seed: int,
    ) -> None:
        assert max_model_len > 1
        assert max_num_seqs > 0
        assert max_num_batched_tokens > 0
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.enable_prefix_caching = enable_prefix_caching
        # A sequence that has the cache to itself must fit, or it would be preempted for ever.
        self.max_seq_len = min(max_model_len, pool.num_blocks * pool.block_size)
        self.sequences: dict[str, Sequence] = {}
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._random = random.Random(seed)
        self._num_arrivals = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    # Requests

    def add(self, request: EngineRequest) -> Sequence:
        """Queue a request that `check_request` has passed.

        Raises RequestError when its id is in use or its prompt can never fit.
        """
        if request.request_id in self.sequences:
            raise RequestError(f"request_id {request.request_id!r} is already being served")
        if len(request.prompt_token_ids) >= self.max_seq_len:
            raise RequestError(
                f"The prompt has {len(request.prompt_token_ids)} tokens; prompt and output "
                f"together can have {self.max_seq_len} here. Shorten the prompt.",
                param="prompt",
                code="context_length_exceeded",
            )
        sequence = Sequence(
            request, arrival=self._num_arrivals, random_seed=self._random.getrandbits(63)
        )
        self._num_arrivals += 1
        self.sequences[request.request_id] = sequence
        self.waiting.append(sequence)
        return sequence

    def abort(self, request_id: str) -> EngineOutput | None:
        """End a request now; None when it is unknown or has ended already.

        A result that a step in flight still brings for it is ignored by `update`.
        """
        sequence = self.sequences.get(request_id)
        return None if sequence is None else self._finish(sequence, "abort")

    def has_unfinished(self) -> bool:
        return bool(self.sequences)

    # A step

    def schedule(self) -> ScheduledStep:
        """Choose the next step's tokens and reserve the blocks for them.

        Not empty while a request is unfinished.
        """
        scheduled: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        while budget and len(scheduled) < len(self.running):
            sequence = self.running[len(scheduled)]
            count = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            assert count > 0, "update() must follow schedule()"
            if not self._make_room(sequence, count):
                return ScheduledStep(tuple(scheduled))
            scheduled.append(self._advance(sequence, count))
            budget -= count
        while budget and self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            count = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            scheduled.append(self._advance(sequence, count))
            budget -= count
        return ScheduledStep(tuple(scheduled))

    def schedule_ahead(
        self, under_way: ScheduledStep, can_run: Callable[[Sequence], bool]
    ) -> ScheduledStep | None:
        """The step behind one that is still being computed, whose tokens are PENDING in it.

        Every running sequence goes on but those that the pending token ends by its number; one that
        its value ends is computed in vain. None where the step depends on more than those values:
        a waiting request can be admitted, a prompt is not through, blocks run out, or a sequence
        may not run like this.
        """
        has_place = self.waiting and len(self.running) < self.max_num_seqs
        if has_place and self._prefix_if_it_fits(self.waiting[0]) is not None:
            return None
        computed_to = {one.request_id: one.end for one in under_way.sequences if one.samples}
        going_on = []
        num_missing = 0
        for sequence in self.running:
            if computed_to.get(sequence.request_id) != sequence.num_tokens or not can_run(sequence):
                return None
            if not sequence.is_last_token_pending(self.max_seq_len):
                going_on.append(sequence)
                num_blocks = self.pool.num_blocks_for(sequence.num_tokens + 1)
                num_missing += num_blocks - len(sequence.block_ids)
        if not going_on or num_missing > self.pool.num_available:
            return None
        return ScheduledStep(tuple(self._advance_ahead(sequence) for sequence in going_on))

    def is_awaited(self, under_way: ScheduledStep) -> bool:
        """Whether anybody still wants what a step under way computes."""
        return any(self._owner(scheduled) is not None for scheduled in under_way.sequences)

    def update(
        self, step: ScheduledStep, results: Mapping[str, SequenceResult]
    ) -> list[EngineOutput]:
        """Take in a step's results, one for each of its sequences, and decide who is finished.

        Returns the news for clients; a sequence in the middle of its prefill has none.
        """
        self._num_steps += 1
        outputs = []
        for scheduled in step.sequences:
            sequence = self._owner(scheduled)
            if sequence is None:
                continue
            result = results[scheduled.request_id]
            if result.error is not None:
                # Keys and values of a request that failed (NaN) must not fail others after it.
                self.pool.uncache(sequence.block_ids)
                outputs.append(self._finish(sequence, "error", error=result.error))
                continue
            if self.enable_prefix_caching:
                cache_full_blocks(self.pool, sequence, scheduled)
            if scheduled.prompt_targets:
                sequence.prompt_logprobs.extend(result.prompt_logprobs)
            if scheduled.samples:
                outputs.append(self._take_token(sequence, result))
        return outputs

    # Facts

    def stats(self) -> EngineStats:
        blocks = self.pool.stats()
        return EngineStats(
            step=self._num_steps,
            num_running_reqs=len(self.running),
            num_waiting_reqs=len(self.waiting),
            num_preemptions=self._num_preemptions,
            kv_cache_usage=blocks.num_referenced / self.pool.num_blocks,
            num_free_blocks=blocks.num_free,
            num_cached_blocks=blocks.num_cached,
            num_referenced_blocks=blocks.num_referenced,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )

    def check_integrity(self) -> None:
        """Prove that nothing is lost, held twice or out of order; raises RuntimeError."""
        self.pool.check_integrity(sequence.block_ids for sequence in self.sequences.values())
        everyone = [*self.running, *self.waiting]
        arrivals = [sequence.arrival for sequence in everyone]
        checks = {
            "queues and known sequences differ": {id(sequence) for sequence in everyone}
            == {id(sequence) for sequence in self.sequences.values()},
            "order of arrival is broken": arrivals == sorted(set(arrivals)),
            "too many sequences run": len(self.running) <= self.max_num_seqs,
            "a waiting sequence holds blocks": not any(s.block_ids for s in self.waiting),
            "blocks do not match computed tokens": all(
                len(s.block_ids) == self.pool.num_blocks_for(s.num_computed_tokens)
                for s in everyone
            ),
            "a sequence is longer than allowed": all(
                s.num_tokens < self.max_seq_len for s in everyone
            ),
        }
        for problem, holds in checks.items():
            if not holds:
                raise RuntimeError(f"scheduler: {problem}")

    # Blocks

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Give a running sequence blocks for `count` more tokens, preempting the newest.

        False when the sequence itself was the newest.
        """
        num_blocks = self.pool.num_blocks_for(sequence.num_computed_tokens + count)
        missing = num_blocks - len(sequence.block_ids)
        while missing > self.pool.num_available:
            victim = self.running.pop()
            self.pool.free(victim.block_ids)
            victim.forget_computed()
            self.waiting.appendleft(victim)
            self._num_preemptions += 1
            if victim is sequence:
                return False
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Move the first waiting sequence to `running` with the cached blocks of its prefix."""
        cached_block_ids = self._prefix_if_it_fits(sequence)
        if cached_block_ids is None:
            return False
        self.pool.touch(cached_block_ids)
        sequence.block_ids = cached_block_ids
        sequence.num_computed_tokens = len(cached_block_ids) * self.pool.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._prefix_cache_queries += sequence.num_tokens
            self._prefix_cache_hits += sequence.num_cached_tokens
        self.running.append(self.waiting.popleft())
        return True

    def _prefix_if_it_fits(self, sequence: Sequence) -> tuple[int, ...] | None:
        """The cached blocks of its prefix, when all its tokens have room besides.

        And every running sequence one more block: admitted into a full cache it would soon be
        preempted, and its prefill computed twice.
        """
        cached_block_ids: tuple[int, ...] = ()
        if self.enable_prefix_caching:
            cached_block_ids = find_cached_prefix(self.pool, sequence)
        needed = self.pool.num_blocks_for(sequence.num_tokens) - len(cached_block_ids)
        needed += self.pool.num_idle(cached_block_ids) + len(self.running)
        return None if needed > self.pool.num_available else cached_block_ids

    # Sequences

    def _advance(self, sequence: Sequence, count: int) -> ScheduledSequence:
        """Schedule the next `count` tokens of a running sequence, with blocks for them."""
        start = sequence.num_computed_tokens
        end = start + count
        missing = self.pool.num_blocks_for(end) - len(sequence.block_ids)
        if missing:
            sequence.block_ids += tuple(self.pool.allocate(missing))
        sequence.num_computed_tokens = end
        targets: tuple[int, ...] = ()
        if sequence.wants_prompt_logprobs:
            targets = tuple(sequence.token_ids[start + 1 : end + 1])
        return ScheduledSequence(
            request_id=sequence.request_id,
            token_ids=tuple(sequence.token_ids[start:end]),
            start=start,
            block_ids=sequence.block_ids,
            samples=end == sequence.num_tokens,
            prompt_targets=targets,
        )

    def _advance_ahead(self, sequence: Sequence) -> ScheduledSequence:
        """Schedule the token that the step under way will choose."""
        scheduled = self._advance(sequence, 1)
        return msgspec.structs.replace(scheduled, token_ids=(PENDING,), samples=True)

    def _owner(self, scheduled: ScheduledSequence) -> Sequence | None:
        """None when it has ended since; another request may have its id by now."""
        sequence = self.sequences.get(scheduled.request_id)
        if sequence is None or sequence.num_computed_tokens < scheduled.end:
            return None
        return sequence

    def _take_token(self, sequence: Sequence, result: SequenceResult) -> EngineOutput:
        assert result.token_id is not None
        prompt_logprobs = sequence.prompt_logprobs if sequence.wants_prompt_logprobs else None
        if sequence.num_output_tokens == 0:
            self._prompt_tokens += sequence.num_prompt_tokens
        sequence.append(result.token_id)
        self._generation_tokens += 1
        reason = sequence.finish_reason(self.max_seq_len)
        if reason is not None:
            self._remove(sequence)
        return EngineOutput(
            request_id=sequence.request_id,
            token_ids=[result.token_id],
            logprobs=None if result.logprobs is None else [result.logprobs],
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            stop_token_id=sequence.stop_token_id,
            num_cached_tokens=sequence.num_cached_tokens or 0,
        )

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None
    ) -> EngineOutput:
        self._remove(sequence)
        return EngineOutput(
            request_id=sequence.request_id,
            finish_reason=reason,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            error=error,
        )

    def _remove(self, sequence: Sequence) -> None:
        """Forget a sequence and give back its blocks."""
        del self.sequences[sequence.request_id]
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.free(sequence.block_ids)
        sequence.block_ids = ()
