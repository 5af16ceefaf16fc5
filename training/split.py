"""What is trained on and what is kept back for the quiz never meet.

Phrasings are listed by hand in two lists. Everything drawn at random (numbers, schemas, keys,
texts) is split by a hash of what makes it that thing: `belongs` gives every key to one side.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
HELD_OUT_SHARE = 8  # one key in this many is held out
MAX_DRAWS = 10_000

T = TypeVar("T")


def split_of(key: str) -> Split:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


def draw(make: Callable[[], T], key_of: Callable[[T], str], split: Split) -> T:
    """Draw until the thing belongs to the split; raises RuntimeError when none ever does."""
    for _ in range(MAX_DRAWS):
        thing = make()
        if split_of(key_of(thing)) == split:
            return thing
    raise RuntimeError(f"no {split} draw in {MAX_DRAWS} tries; the generator has too few things")


def choose(rng: random.Random, train: Sequence[T], held_out: Sequence[T], split: Split) -> T:
    """From the list of the split."""
    return rng.choice(train if split == "train" else held_out)
