"""The choice of an upstream: affinity, bounded loads, deaths; seeded random histories."""

import random
from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2serve.engine import upstream_balance
from m2serve.engine.upstream_balance import BLOCK_TOKENS, LOAD_FACTOR, Balancer, block_hashes


def prompt(seed: int, num_blocks: int = 4) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(200_000) for _ in range(num_blocks * BLOCK_TOKENS)]


def test_hashes_are_one_a_whole_block_and_at_least_one() -> None:
    assert len(block_hashes([1])) == 1
    assert len(block_hashes(prompt(0, 1))) == 1
    assert len(block_hashes([*prompt(0, 3), 7, 8])) == 3
    assert block_hashes([*prompt(0, 3), 7, 8]) == block_hashes(prompt(0, 3))
    assert block_hashes([1]) != block_hashes([2])
    assert block_hashes([1], b"salt") != block_hashes([1])


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=700), st.data())
@settings(max_examples=60, deadline=None)
def test_hashes_agree_up_to_the_first_difference(ids: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ids) - 1))
    other = [*ids[:at], ids[at] ^ 1, *ids[at + 1 :]]
    ours, theirs = block_hashes(ids), block_hashes(other)
    equal = [a == b for a, b in zip(ours, theirs, strict=True)]
    whole = len(ids) // BLOCK_TOKENS
    changed = at // BLOCK_TOKENS
    expected = [i < changed or (whole > 0 and changed >= whole) for i in range(len(ours))]
    assert equal == expected


def test_a_growing_conversation_stays_where_it_began() -> None:
    balancer = Balancer(4)
    for seed in range(20):
        ids = prompt(seed, 2)
        homes = set()
        for _ in range(5):
            member = balancer.acquire(block_hashes(ids), range(4))
            balancer.release(member)
            homes.add(member)
            ids = ids + prompt(seed + 1000, 1)
        assert len(homes) == 1


def test_a_common_system_prompt_does_not_gather_everyone() -> None:
    """With all requests running at once, affinity gives way to the bound."""
    balancer = Balancer(4)
    system = prompt(1, 8)
    for seed in range(40):
        balancer.acquire(block_hashes(system + prompt(seed + 2, 1)), range(4))
    assert max(balancer.loads) <= ceil(LOAD_FACTOR * 40 / 4)
    assert min(balancer.loads) > 0


def test_idle_members_share_strangers() -> None:
    balancer = Balancer(3)
    homes = Counter()
    for seed in range(300):
        member = balancer.acquire(block_hashes([seed]), range(3))
        balancer.release(member)
        homes[member] += 1
    assert min(homes.values()) > 60


def test_two_fronts_send_a_stranger_to_the_same_member() -> None:
    for seed in range(30):
        hashes = block_hashes(prompt(seed))
        assert Balancer(5).acquire(hashes, range(5)) == Balancer(5).acquire(hashes, range(5))


def test_a_restarted_member_is_not_preferred_for_what_it_lost() -> None:
    balancer = Balancer(2)
    hashes = block_hashes(prompt(3))
    home = balancer.acquire(hashes, range(2))
    balancer.release(home)
    balancer.forget(home)
    assert balancer.num_held_blocks(home, hashes) == 0


def test_memory_is_bounded_and_keeps_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_balance, "MAX_BLOCKS", 6)
    balancer = Balancer(1)
    hashes = block_hashes(prompt(4, 10))
    balancer.acquire(hashes, [0])
    assert balancer.num_held_blocks(0, hashes) == 6
    balancer.acquire(block_hashes(prompt(5, 2)), [0])
    assert balancer.num_held_blocks(0, hashes) == 4


@pytest.mark.parametrize("seed", range(30))
def test_random_histories_keep_the_bound(seed: int) -> None:
    generator = random.Random(seed)
    num_members = generator.randrange(1, 7)
    balancer = Balancer(num_members)
    running: list[int] = []
    conversations = [prompt(i, generator.randrange(1, 5)) for i in range(10)]
    for _ in range(300):
        if running and generator.random() < 0.45:
            balancer.release(running.pop(generator.randrange(len(running))))
            continue
        alive = sorted(
            generator.sample(range(num_members), generator.randrange(1, num_members + 1))
        )
        before = sum(balancer.loads[member] for member in alive)
        chosen = balancer.acquire(block_hashes(generator.choice(conversations)), alive)
        running.append(chosen)
        assert chosen in alive
        assert balancer.loads[chosen] <= ceil(LOAD_FACTOR * (before + 1) / len(alive))
        assert sum(balancer.loads) == len(running)
    for member in running:
        balancer.release(member)
    assert balancer.loads == [0] * num_members
