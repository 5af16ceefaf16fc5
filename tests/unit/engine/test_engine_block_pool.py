"""The block pool: states of blocks, order of eviction, keys."""

import random

import pytest

from m2serve.engine.block_pool import BlockPool, BlockPoolStats

SECRET = b"0123456789abcdef"


def _pool(num_blocks: int = 4, secret: bytes = SECRET) -> BlockPool:
    return BlockPool(num_blocks, 2, secret=secret)


def _keys(pool: BlockPool, token_ids: list[int], salt: bytes = b"") -> list[bytes]:
    keys = [pool.root_key(salt)]
    for start in range(0, len(token_ids), pool.block_size):
        keys.append(pool.block_key(keys[-1], token_ids[start : start + pool.block_size]))
    return keys[1:]


def test_blocks_move_between_the_three_states() -> None:
    pool = _pool()
    (key,) = _keys(pool, [1, 2])
    assert pool.stats() == BlockPoolStats(4, 0, 0)
    first, second = pool.allocate(2)
    pool.cache_full_block(first, key)
    assert pool.stats() == BlockPoolStats(2, 0, 2)
    pool.free([first, second])
    assert pool.stats() == BlockPoolStats(3, 1, 0)
    assert pool.num_available == 4
    assert pool.find(key) == first
    assert pool.num_idle([first]) == 1
    pool.touch([first])
    assert pool.num_idle([first]) == 0
    pool.touch([first])
    assert pool.stats() == BlockPoolStats(3, 0, 1)
    pool.free([first])
    assert pool.stats() == BlockPoolStats(3, 0, 1)
    pool.free([first])
    assert pool.stats() == BlockPoolStats(3, 1, 0)
    pool.check_integrity([])


def test_empty_blocks_go_first_then_the_oldest_end_of_a_prefix() -> None:
    pool = _pool(5)
    blocks = pool.allocate(4)
    keys = _keys(pool, [1, 2, 3, 4, 5, 6])
    for block, key in zip(blocks, keys, strict=False):
        pool.cache_full_block(block, key)
    pool.free(blocks)
    assert set(pool.allocate(2)) == {blocks[3], 4}
    assert [pool.find(key) for key in keys] == blocks[:3]
    assert pool.allocate(1) == [blocks[2]]
    assert [pool.find(key) for key in keys] == [blocks[0], blocks[1], None]
    assert pool.allocate(1) == [blocks[1]]


def test_a_hit_makes_a_block_young_again() -> None:
    pool = _pool(2)
    old, new = pool.allocate(2)
    old_key, new_key = _keys(pool, [1, 2, 3, 4])
    pool.cache_full_block(old, old_key)
    pool.cache_full_block(new, new_key)
    pool.free([old])
    pool.free([new])
    pool.touch([old])
    pool.free([old])
    assert pool.allocate(1) == [new]
    assert pool.find(old_key) == old


def test_the_first_block_with_a_key_stays_the_known_one() -> None:
    pool = _pool()
    first, second = pool.allocate(2)
    (key,) = _keys(pool, [1, 2])
    pool.cache_full_block(first, key)
    pool.cache_full_block(second, key)
    assert pool.find(key) == first
    pool.free([second])
    assert pool.stats() == BlockPoolStats(3, 0, 1)
    assert pool.find(key) == first


def test_an_uncached_block_is_not_found() -> None:
    pool = _pool()
    blocks = pool.allocate(2)
    (key,) = _keys(pool, [1, 2])
    pool.cache_full_block(blocks[0], key)
    pool.uncache(blocks)
    pool.free(blocks)
    assert pool.find(key) is None
    assert pool.stats() == BlockPoolStats(4, 0, 0)
    pool.check_integrity([])


def test_keys_depend_on_everything_before_on_the_salt_and_on_the_secret() -> None:
    pool = _pool()
    prefixes = [[1, 2, 3, 4], [1, 3, 3, 4], [3, 4], [2, 1, 3, 4], [3, 4, 3, 4], [3 << 16, 4]]
    keys = {_keys(pool, prefix)[-1] for prefix in prefixes}
    keys.add(_keys(pool, [3, 4], salt=b"tenant")[-1])
    keys.add(_keys(pool, [1, 2, 3, 4], salt=b"tenant")[-1])
    keys.add(_keys(_pool(secret=SECRET[::-1]), [3, 4])[-1])
    assert len(keys) == len(prefixes) + 3
    assert _keys(pool, [3, 4]) == _keys(_pool(), [3, 4])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda pool: pool.touch([0]), "references"),
        (lambda pool: pool._available.pop(1), "available"),
        (lambda pool: pool._available.move_to_end(3), "empty block"),
        (lambda pool: setattr(pool, "_num_idle_cached", 2), "count"),
        (lambda pool: pool._block_of_key.clear(), "one to one"),
    ],
)
def test_check_integrity_finds_damage(damage, problem: str) -> None:
    pool = _pool()
    blocks = pool.allocate(1)
    pool.cache_full_block(blocks[0], _keys(pool, [1, 2])[0])
    pool.free(blocks)
    pool.check_integrity([])
    damage(pool)
    with pytest.raises(RuntimeError, match=problem):
        pool.check_integrity([])


def test_random_use_keeps_the_books() -> None:
    rng = random.Random(7)
    for _ in range(50):
        pool = _pool(rng.randrange(1, 12))
        held: list[list[int]] = []
        for _ in range(100):
            if held and rng.random() < 0.4:
                pool.free(held.pop(rng.randrange(len(held))))
            tokens = [rng.randrange(2) for _ in range(2 * rng.randrange(1, 4))]
            keys = _keys(pool, tokens)
            hit: list[int] = []
            while len(hit) < len(keys) and (block := pool.find(keys[len(hit)])) is not None:
                hit.append(block)
            missing = len(keys) - len(hit)
            if missing + pool.num_idle(hit) <= pool.num_available:
                pool.touch(hit)
                blocks = hit + pool.allocate(missing)
                for block, key in zip(blocks, keys, strict=True):
                    pool.cache_full_block(block, key)
                held.append(blocks)
            pool.check_integrity(held)
        for blocks in held:
            pool.free(blocks)
        pool.check_integrity([])
        assert pool.stats().num_referenced == 0
