"""Full blocks of a sequence found again and kept by what stands in them and before them.

A block's key holds the key of the block before it, so equal keys mean equal prefixes; the first
holds the request's `cache_salt`. A sequence keeps the keys it has worked out.
"""

from __future__ import annotations

from m2serve.engine.block_pool import BlockPool
from m2serve.engine.sequence import Sequence
from m2serve.engine.step import ScheduledSequence


def find_cached_prefix(pool: BlockPool, sequence: Sequence) -> tuple[int, ...]:
    """Blocks of the longest known prefix that leaves at least one token to compute.

    No blocks for a sequence that wants its prompt's logprobs: they come only from computing it.
    """
    found: list[int] = []
    if sequence.sampling.prompt_logprobs is not None:
        return ()
    for index in range((sequence.num_tokens - 1) // pool.block_size):
        block = pool.find(_block_key(pool, sequence, index))
        if block is None:
            break
        found.append(block)
    return tuple(found)


def cache_full_blocks(pool: BlockPool, sequence: Sequence, scheduled: ScheduledSequence) -> None:
    """Keep the blocks that a step has filled."""
    block_size = pool.block_size
    for index in range(scheduled.start // block_size, scheduled.end // block_size):
        pool.cache_full_block(sequence.block_ids[index], _block_key(pool, sequence, index))


def _block_key(pool: BlockPool, sequence: Sequence, index: int) -> bytes:
    """Key of the sequence's block `index`, all of whose tokens are known."""
    keys = sequence.block_keys
    while len(keys) <= index:
        parent = keys[-1] if keys else pool.root_key(sequence.cache_salt)
        start = len(keys) * pool.block_size
        token_ids = sequence.token_ids[start : start + pool.block_size]
        keys.append(pool.block_key(parent, token_ids))
    return keys[index]
