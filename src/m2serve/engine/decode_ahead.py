"""Decode steps that the native library computes while Python takes in the step before.

Only for steps of plain requests: a token in, a token out, chosen by the library itself from logits
that nobody changes or reads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from m2serve.engine.choosing import NO_TOKEN, is_native, row_choice
from m2serve.engine.logits_processors import needs_processing
from m2serve.engine.sampler import NOT_FINITE
from m2serve.engine.sequence import Sequence
from m2serve.engine.step import PENDING, ScheduledStep, SequenceResult
from m2serve.engine.step_batch import BlockTable
from m2serve.kernels.cpu_decoder import NO_SOURCE, CpuDecoder, DecodeRows
from m2serve.model.batch import KVCache
from m2serve.model.minimax_m2 import MiniMaxM2
from m2serve.model.native import NativeMiniMaxM2

logger = logging.getLogger(__name__)


class StepUnderWay(msgspec.Struct, frozen=True):
    """A step handed to the library."""

    step: ScheduledStep
    rows: DecodeRows


class DecodeAhead:
    """At most two steps are under way; each is finished once, in the order they were started."""

    def __init__(self, decoder: CpuDecoder, block_size: int, used_vocab_size: int) -> None:
        self._decoder = decoder
        self._block_size = block_size
        self._used_vocab_size = used_vocab_size
        # By turns: the library reads one while the other is filled.
        self._places = [(DecodeRows(1), BlockTable()), (DecodeRows(1), BlockTable())]

    @property
    def native_s(self) -> float:
        """Seconds that the steps finished so far have taken in the native library."""
        return self._decoder.native_s

    def can_run(self, sequence: Sequence) -> bool:
        """Whether this request's next tokens may come from here."""
        return (
            sequence.sampling.logprobs is None
            and not needs_processing(sequence)
            and is_native(sequence, self._used_vocab_size)
        )

    def can_start(self, step: ScheduledStep, sequences: Mapping[str, Sequence]) -> bool:
        return bool(step.sequences) and all(
            one.is_decode and self.can_run(sequences[one.request_id]) for one in step.sequences
        )

    def start(
        self,
        step: ScheduledStep,
        sequences: Mapping[str, Sequence],
        before: StepUnderWay | None = None,
    ) -> StepUnderWay:
        """Hand in a step that `can_start`, or one scheduled behind the step `before`.

        PENDING tokens are those of `before`, the one started last. Without it nothing is under way
        but what an exception has left.
        """
        if before is None:
            self.drain()
        scheduled = step.sequences
        rows, table = self._next_place(len(scheduled))
        rows_before = {} if before is None else _rows_by_id(before.step)
        token_ids = [one.token_ids[0] for one in scheduled]
        is_pending = [token_id == PENDING for token_id in token_ids]
        rows.fill(
            token_ids=token_ids,
            sources=[
                rows_before[one.request_id] if pending else NO_SOURCE
                for one, pending in zip(scheduled, is_pending, strict=True)
            ],
            positions=[one.start for one in scheduled],
            slot_mapping=[one.slot(one.start, self._block_size) for one in scheduled],
            block_table=table.put([one.block_ids for one in scheduled]),
            choices=[
                row_choice(sequences[one.request_id], self._used_vocab_size, pending)
                for one, pending in zip(scheduled, is_pending, strict=True)
            ],
            before=None if before is None else before.rows,
        )
        self._decoder.submit(rows)
        return StepUnderWay(step, rows)

    def finish(self, under_way: StepUnderWay) -> dict[str, SequenceResult]:
        """Wait for the step started first of those under way."""
        found = zip(under_way.step.sequences, self._decoder.wait(), strict=True)
        return {one.request_id: _result(token_id) for one, token_id in found}

    def drain(self) -> None:
        """Wait for what is under way and forget it."""
        self._decoder.drain()

    def _next_place(self, num_rows: int) -> tuple[DecodeRows, BlockTable]:
        rows, table = self._places.pop(0)
        if rows.capacity < num_rows:
            rows = DecodeRows(max(num_rows, 2 * rows.capacity))
        self._places.append((rows, table))
        return rows, table


def _rows_by_id(step: ScheduledStep) -> dict[str, int]:
    return {one.request_id: row for row, one in enumerate(step.sequences)}


def _result(token_id: int) -> SequenceResult:
    if token_id == NO_TOKEN:
        return SequenceResult(error=NOT_FINITE)
    return SequenceResult(token_id=token_id)


def make_decode_ahead(
    model: MiniMaxM2, kv_cache: KVCache, used_vocab_size: int
) -> DecodeAhead | None:
    """None where the library does not run the whole model."""
    if not isinstance(model, NativeMiniMaxM2):
        return None
    try:
        decoder = model.make_decoder(kv_cache, used_vocab_size)
    except MemoryError as error:
        logger.warning("%s: every step is waited for before the next is prepared", error)
        return None
    return DecodeAhead(decoder, kv_cache.block_size, used_vocab_size)
