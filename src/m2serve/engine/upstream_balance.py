"""Which upstream gets a request: the one that holds most of its prompt, unless it is too busy.

Pure: no network, no clock. Members are numbered from 0. Nobody is asked what its prefix cache
holds; what was sent to a member lately stands for it, as chained hashes of blocks of prompt ids.

The load is bounded as in consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam,
2018): no member gets a request while it has LOAD_FACTOR times the average or more.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from hashlib import blake2b
from math import ceil

BLOCK_TOKENS = 128
MAX_BLOCKS = 32_768  # a member: four million tokens
LOAD_FACTOR = 1.25
_HASH_BYTES = 8


def block_hashes(prompt: Sequence[int], salt: bytes = b"") -> list[bytes]:
    """One hash for each whole block of the prompt, over everything up to its end.

    A prompt shorter than a block has one hash, so that it has a place of its own, too.
    """
    num_tokens = max(len(prompt) - len(prompt) % BLOCK_TOKENS, min(len(prompt), BLOCK_TOKENS))
    data = memoryview(array("I", prompt[:num_tokens])).cast("B")
    block_bytes = BLOCK_TOKENS * data.nbytes // max(num_tokens, 1)
    hashes = []
    last = salt
    for start in range(0, max(data.nbytes, 1), max(block_bytes, 1)):
        last = blake2b(last + data[start : start + block_bytes], digest_size=_HASH_BYTES).digest()
        hashes.append(last)
    return hashes


class Balancer:
    """`acquire` and `release` stand around each request; `loads[i]` are member i's running ones."""

    def __init__(self, num_members: int) -> None:
        self.loads = [0] * num_members
        self._held: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(num_members)]

    def acquire(self, hashes: Sequence[bytes], candidates: Collection[int]) -> int:
        """The member for a prompt with these block hashes; `candidates` is not empty."""
        total = sum(self.loads[member] for member in candidates)
        bound = ceil(LOAD_FACTOR * (total + 1) / len(candidates))
        eligible = [member for member in candidates if self.loads[member] < bound]
        chosen = max(eligible, key=lambda member: self._preference(member, hashes))
        self.loads[chosen] += 1
        self._remember(chosen, hashes)
        return chosen

    def release(self, member: int) -> None:
        self.loads[member] -= 1

    def forget(self, member: int) -> None:
        """The member was restarted: its cache is empty."""
        self._held[member].clear()

    def num_held_blocks(self, member: int, hashes: Sequence[bytes]) -> int:
        """How many leading blocks the member has been sent."""
        held = self._held[member]
        for index, one in enumerate(hashes):
            if one not in held:
                return index
        return len(hashes)

    def _preference(self, member: int, hashes: Sequence[bytes]) -> tuple[int, int, bytes]:
        """Most blocks held, then least load, then a place that every front of a fleet computes."""
        place = blake2b(b"%d:" % member + hashes[0], digest_size=_HASH_BYTES).digest()
        return self.num_held_blocks(member, hashes), -self.loads[member], place

    def _remember(self, member: int, hashes: Sequence[bytes]) -> None:
        held = self._held[member]
        # Last block first: when the oldest go, what is left of a prompt is its beginning.
        for one in reversed(hashes):
            held[one] = None
            held.move_to_end(one)
        while len(held) > MAX_BLOCKS:
            held.popitem(last=False)
