"""The KV cache's blocks: who holds which, and which can be used again for the same prefix.

Pure bookkeeping: block ids and counts, no tensors and no clock. A block is in one of three states:

    referenced  held by at least one sequence
    cached      held by none, its keys and values can still be found by the key of their prefix
    free        held by none and known to nobody

Free and cached blocks form one queue: blocks are taken from its front, empty ones stand before
cached ones, and cached ones in the order in which they were given back.

A prefix key is a keyed blake2b over the key of the block before, the token ids of the block and,
at the root, the salt of the request. The secret is drawn for each process, so a client can neither
predict keys nor build two prefixes that share one.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

_KEY_BYTES = 32


@dataclass(frozen=True)
class BlockPoolStats:
    """Blocks by state; the three add up to the size of the pool."""

    num_free: int
    num_cached: int
    num_referenced: int


class BlockPool:
    """`secret` is 16 to 64 random bytes, new for each process."""

    def __init__(self, num_blocks: int, block_size: int, *, secret: bytes) -> None:
        assert num_blocks > 0
        assert block_size > 0
        assert 16 <= len(secret) <= 64
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._secret = secret
        self._num_references = [0] * num_blocks
        self._available: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._key_of_block: dict[int, bytes] = {}
        self._block_of_key: dict[bytes, int] = {}
        self._num_idle_cached = 0

    # Keys

    def root_key(self, salt: bytes) -> bytes:
        """Key before the first block: requests with different salts share nothing."""
        return blake2b(salt, digest_size=_KEY_BYTES, key=self._secret, person=b"salt").digest()

    def block_key(self, parent: bytes, token_ids: list[int]) -> bytes:
        """Key of a full block that follows the block with key `parent`."""
        assert len(token_ids) == self.block_size
        packed = parent + array("I", token_ids).tobytes()
        return blake2b(packed, digest_size=_KEY_BYTES, key=self._secret, person=b"block").digest()

    # Taking and giving back

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones and cached ones."""
        return len(self._available)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find(self, key: bytes) -> int | None:
        """The block whose prefix has this key, if it is still there; does not reserve it."""
        return self._block_of_key.get(key)

    def num_idle(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks nobody references, so that `touch` makes them unavailable."""
        return sum(self._num_references[block] == 0 for block in block_ids)

    def touch(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each of these cached blocks, found by `find`."""
        for block in block_ids:
            if self._num_references[block] == 0:
                del self._available[block]
                self._num_idle_cached -= 1
            self._num_references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one reference, forgetting what they held."""
        assert count <= self.num_available
        return [self._take_oldest() for _ in range(count)]

    def free(self, block_ids: Sequence[int]) -> None:
        """Drop one reference to each block of a sequence, given in the order of its tokens.

        The end of a sequence is the first to be evicted: a prefix is of use to more requests, and
        a block is not found without the ones before it.
        """
        for block in reversed(block_ids):
            assert self._num_references[block] > 0
            self._num_references[block] -= 1
            if self._num_references[block] == 0:
                self._available[block] = None
                if block in self._key_of_block:
                    self._num_idle_cached += 1
                else:
                    self._available.move_to_end(block, last=False)

    def cache_full_block(self, block_id: int, key: bytes) -> None:
        """Let a referenced block, all of whose tokens are computed, be found by its key.

        When another block already has this key (two requests computed the same prefix at the same
        time), that one stays the known one.
        """
        assert self._num_references[block_id] > 0
        if key not in self._block_of_key and block_id not in self._key_of_block:
            self._block_of_key[key] = block_id
            self._key_of_block[block_id] = key

    def uncache(self, block_ids: Iterable[int]) -> None:
        """Let nobody find these referenced blocks any more: what they hold is not to be trusted."""
        for block in block_ids:
            assert self._num_references[block] > 0
            key = self._key_of_block.pop(block, None)
            if key is not None:
                del self._block_of_key[key]

    def stats(self) -> BlockPoolStats:
        available = len(self._available)
        return BlockPoolStats(
            num_free=available - self._num_idle_cached,
            num_cached=self._num_idle_cached,
            num_referenced=self.num_blocks - available,
        )

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Prove the bookkeeping; `held` are the block lists of all sequences that hold any.

        Raises RuntimeError, also under `python -O`.
        """
        references = Counter(block for block_ids in held for block in block_ids)
        idle = {block for block in range(self.num_blocks) if not self._num_references[block]}
        cached = [block in self._key_of_block for block in self._available]
        checks = {
            "references differ from what sequences hold": self._num_references
            == [references[block] for block in range(self.num_blocks)],
            "available blocks are not the unreferenced ones": set(self._available) == idle,
            "an empty block stands behind a cached one": cached == sorted(cached),
            "the count of idle cached blocks is off": sum(cached) == self._num_idle_cached,
            "keys and blocks do not map one to one": self._block_of_key
            == {key: block for block, key in self._key_of_block.items()},
        }
        for problem, holds in checks.items():
            if not holds:
                raise RuntimeError(f"block pool: {problem}")

    def _take_oldest(self) -> int:
        block, _ = self._available.popitem(last=False)
        key = self._key_of_block.pop(block, None)
        if key is not None:
            del self._block_of_key[key]
            self._num_idle_cached -= 1
        self._num_references[block] = 1
        return block
