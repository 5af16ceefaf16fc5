"""Decode steps computed by a thread of the native library while Python does something else.

A step is handed in before the one in front of it has ended, and takes its tokens from there: the
library goes from one to the next without waiting for Python.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Sequence

import numpy as np

from m2serve.kernels.cpu_sample import Choice
from m2serve.kernels.cpu_step import CpuStep
from m2serve.kernels.cpu_structs import CpuDecode, CpuKVCache

# The source of a row whose own token id counts.
NO_SOURCE = -1
# The library holds as many.
MOST_AT_ONCE = 2


class DecodeRows:
    """One step's input and output, S sequences with a token each; filled again once waited for."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._token_ids = np.zeros(capacity, np.int64)
        self._positions = np.zeros(capacity, np.int64)
        self._slot_mapping = np.zeros(capacity, np.int64)
        self._query_start_loc = np.arange(capacity + 1, dtype=np.int32)
        self._seq_lens = np.zeros(capacity, np.int32)
        self._logits_rows = np.arange(capacity, dtype=np.int64)
        self._sources = np.zeros(capacity, np.int64)
        self._choices = np.zeros((capacity, 5), np.float64)
        self._chosen = np.zeros(capacity, np.int64)
        self._kept: tuple[object, ...] = ()
        self.decode = CpuDecode(
            sources=self._sources.ctypes.data,
            choices=self._choices.ctypes.data,
            chosen=self._chosen.ctypes.data,
        )
        batch = self.decode.batch
        batch.token_ids = self._token_ids.ctypes.data
        batch.positions = self._positions.ctypes.data
        batch.slot_mapping = self._slot_mapping.ctypes.data
        batch.query_start_loc = self._query_start_loc.ctypes.data
        batch.seq_lens = self._seq_lens.ctypes.data
        batch.logits_rows = self._logits_rows.ctypes.data

    def fill(
        self,
        *,
        token_ids: Sequence[int],
        sources: Sequence[int],
        positions: Sequence[int],
        slot_mapping: Sequence[int],
        block_table: np.ndarray,
        choices: Sequence[Choice],
        before: DecodeRows | None,
    ) -> None:
        """S of each; `block_table` is int32 [S, B], contiguous.

        Row r runs `token_ids[r]`, or what row `sources[r]` of the step `before` will have chosen.
        """
        count = len(token_ids)
        self._token_ids[:count] = token_ids
        self._sources[:count] = sources
        self._positions[:count] = positions
        self._slot_mapping[:count] = slot_mapping
        np.add(self._positions[:count], 1, out=self._seq_lens[:count], casting="unsafe")
        self._choices[:count] = choices
        batch = self.decode.batch
        batch.num_tokens = batch.num_sequences = batch.num_logits_rows = count
        batch.blocks = block_table.shape[1]
        batch.block_table = block_table.ctypes.data
        self.decode.previous = None if before is None else before.decode.chosen
        self._kept = block_table, None if before is None else before._chosen

    def chosen(self) -> list[int]:
        """The token of every row, -1 for one whose logits are not finite."""
        found: list[int] = self._chosen[: self.decode.batch.num_tokens].tolist()
        return found


class CpuDecoder:
    """Runs the steps of one model over one KV cache; `keep` holds the tensors of both.

    While a step is on its way nothing else may run `step`. Not for several threads at once.
    `native_s` is the time that the steps waited for have taken.
    """

    def __init__(
        self, step: CpuStep, cache: CpuKVCache, used_vocab_size: int, keep: object
    ) -> None:
        self._step = step
        self._kept = cache, keep
        self._used_vocab_size = used_vocab_size
        self._functions = step.library.functions
        self._functions.m2_decoder_new.restype = ctypes.c_void_p
        handle = self._functions.m2_decoder_new(
            step.handle, ctypes.byref(step.model), ctypes.byref(cache)
        )
        if not handle:
            raise MemoryError("no memory or no thread to decode on")
        self._handle = ctypes.c_void_p(handle)
        self._process = os.getpid()
        self._under_way: deque[DecodeRows] = deque()
        self._seconds = ctypes.c_double()
        self.native_s = 0.0

    def __del__(self) -> None:
        # A forked process has no such thread to wait for.
        if hasattr(self, "_handle") and os.getpid() == self._process:
            self._functions.m2_decoder_free(self._handle)  # waits for what is on its way

    def submit(self, rows: DecodeRows) -> None:
        """Have a step computed behind the one that is on its way, if one is."""
        assert len(self._under_way) < MOST_AT_ONCE
        if not self._under_way:
            self._step.library.follow_torch_threads()
        rows.decode.vocab = self._used_vocab_size
        self._under_way.append(rows)
        self._functions.m2_decode_submit(self._handle, ctypes.byref(rows.decode))

    def wait(self) -> list[int]:
        """The tokens of the oldest step handed in and not yet waited for, as DecodeRows.chosen."""
        failed = self._functions.m2_decode_wait(self._handle, ctypes.byref(self._seconds))
        rows = self._under_way.popleft()
        self.native_s += self._seconds.value
        if failed:
            raise MemoryError("the native decoder found no memory for its buffers")
        return rows.chosen()

    def drain(self) -> None:
        """Wait for all that is on its way, and forget it: nobody wants it, it counts for nothing.

        Also where an exception came between a step's end and its being taken in.
        """
        self._functions.m2_decode_drain(self._handle)
        self._under_way.clear()
