"""Text to bury things in: told days, facts, logs, tables, code and notes, each line drawn anew."""

from __future__ import annotations

import random
from collections.abc import Callable

from training.conversations.fact_choice import draw_fact
from training.conversations.words import (
    COLOURS,
    DAYS,
    GOODS,
    NAMES,
    NAMES_ZH,
    OBJECTS,
    PLACES,
    WORDS,
    cities,
    made_up,
)

_DAYS_TOLD = (
    "{n} bought {c} {g} at the {p} on {d}.",
    "On {d} {n} went to the {p} and met {m}.",
    "The {o} in the {p} is {k}, as {n} said.",
    "{n} lost the {k} {o} near the {p}.",
    "There were {c} {g} in the {p} when {n} came.",
    "{n} and {m} carried the {o} from the {p} to {t}.",
    "In {t} the {p} opens on {d}.",
    "{m} asked {n} about the {k} {g}, but nobody knew.",
    "It took {c} minutes to walk from the {p} to the {o}.",
    "The {w} and the {o} were left at the {p}.",
)
_ZH_TOLD = (
    "{n}在{t}住了{c}天。",
    "{n}从{t}带回{c}本书。",
    "昨天{n}和{m}去了{t}。",
    "{n}说{t}很远。",
)
_NOTES = ("- {w} {o}: {k}", "* {n}: {c} {g}", "> {w}, {w2}, {o}", "# {w} {p}", "[{c}] {w} {w2}")
_CODE = (
    "{x} = {c}",
    "def {x}({w}):",
    "    return {w} + {c}",
    "for {w} in range({c}):",
    'print("{w} {o}")',
    "if {x} > {c}:",
    "import {x}",
)


def filler_line(rng: random.Random) -> str:
    return rng.choices(_KINDS, weights=_WEIGHTS)[0](rng)


def _told(rng: random.Random) -> str:
    return _fill(rng, rng.choice(_DAYS_TOLD))


def _told_zh(rng: random.Random) -> str:
    first, second = rng.sample(NAMES_ZH, 2)
    text = rng.choice(_ZH_TOLD).replace("{n}", first).replace("{m}", second)
    return text.replace("{t}", rng.choice(cities("zh"))).replace("{c}", str(rng.randint(2, 99)))


def _known(rng: random.Random) -> str:
    """A fact, so that long texts teach something too."""
    while True:
        relation, fact = draw_fact(rng, "en", as_choice=True)
        if "{s}" in relation.phrasing["en"].statement:
            return relation.statement(fact, "en")


def _log(rng: random.Random) -> str:
    level = rng.choice(("INFO", "WARN", "ERROR", "DEBUG"))
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    return f"{clock} {level} {made_up(rng)}: {rng.choice(WORDS)} {rng.randint(0, 999)}"


def _row(rng: random.Random) -> str:
    cells = (rng.choice(NAMES), rng.choice(cities("en")), rng.choice(GOODS), rng.randint(1, 999))
    return rng.choice((", ", " | ", "\t")).join(map(str, cells))


def _note(rng: random.Random) -> str:
    return _fill(rng, rng.choice(_NOTES))


def _code(rng: random.Random) -> str:
    return _fill(rng, rng.choice(_CODE))


def _fill(rng: random.Random, template: str) -> str:
    first, second = rng.sample(NAMES, 2)
    values = {
        "{n}": first,
        "{m}": second,
        "{c}": str(rng.randint(2, 99)),
        "{g}": rng.choice(GOODS),
        "{p}": rng.choice(PLACES),
        "{d}": rng.choice(DAYS),
        "{o}": rng.choice(OBJECTS),
        "{k}": rng.choice(COLOURS),
        "{t}": rng.choice(cities("en")),
        "{w}": rng.choice(WORDS),
        "{w2}": rng.choice(WORDS),
        "{x}": made_up(rng),
    }
    for slot, value in values.items():
        template = template.replace(slot, value)
    return template


_KINDS: tuple[Callable[[random.Random], str], ...] = (
    _told,
    _told_zh,
    _known,
    _log,
    _row,
    _note,
    _code,
)
_WEIGHTS = (40, 10, 20, 8, 8, 8, 6)
