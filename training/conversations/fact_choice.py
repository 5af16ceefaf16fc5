"""Draws facts: the larger a category, the likelier, but by the root of its size only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from training.facts import Fact, Relation, load_relations

CHINESE_SHARE = 0.28

Drawn = tuple[Relation, Fact]


def draw_language(rng: random.Random) -> str:
    return "zh" if rng.random() < CHINESE_SHARE else "en"


def draw_fact(rng: random.Random, language: str, *, as_choice: bool = False) -> Drawn:
    """A fact known in the language; with `as_choice`, one fit for multiple choice."""
    pool, cumulative = _pool(language, as_choice)
    return rng.choices(pool, cum_weights=cumulative)[0]


def facts_of_category(category: str, language: str) -> list[Drawn]:
    """Every fact fit for multiple choice in a category, in the order of the files."""
    return [pair for pair in _pool(language, True)[0] if pair[0].category == category]


@cache
def _pool(language: str, as_choice: bool) -> tuple[Sequence[Drawn], Sequence[float]]:
    pairs = [
        (relation, fact)
        for relation in load_relations()
        if relation.as_choice or not as_choice
        for fact in relation.facts_in(language)
    ]
    sizes = Counter(relation.category for relation, _ in pairs)
    weights = [relation.weight * sizes[relation.category] ** -0.5 for relation, _ in pairs]
    return pairs, list(accumulate(weights))
