"""The facts of the small world, read from `world/*.toml`.

A table holds one row a line, cells split by ";". A cell is "English|Chinese"; a column whose name
ends in "=" is the same in all languages; "-" means: no such fact. A relation asks for one column
given another, in several phrasings of which some are held out for the quiz; `ask` and `word` say
what is asked for, for the frames of `conversations/phrasing.py`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from training.conversations.phrasing import frames

WORLD = Path(__file__).with_name("world")
LANGUAGES = ("en", "zh")
CATEGORIES = (
    "math",
    "physics",
    "chemistry",
    "law",
    "engineering",
    "other",
    "economics",
    "health",
    "psychology",
    "business",
    "biology",
    "philosophy",
    "computer science",
    "history",
)


@dataclass(frozen=True)
class Phrasing:
    """`statement` has {s} and {o}, the questions only {s}. `framed` are the frames of
    `conversations/phrasing.py` filled with what the relation asks for, also for training only.
    """

    statement: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    framed: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """Subject and object in each language the fact is known in."""

    subject: Mapping[str, str]
    object: Mapping[str, str]

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(lang for lang in LANGUAGES if lang in self.subject and lang in self.object)


@dataclass(frozen=True)
class Relation:
    """`as_choice` False: asked freely only, its answers are too long for options."""

    name: str
    category: str
    phrasing: Mapping[str, Phrasing]
    facts: tuple[Fact, ...]
    weight: float
    as_choice: bool

    def facts_in(self, language: str) -> tuple[Fact, ...]:
        if language not in self.phrasing:
            return ()
        return tuple(fact for fact in self.facts if language in fact.languages)

    def objects_of(self, subject: str, language: str) -> set[str]:
        """Every right answer: a subject can stand in several rows."""
        return {
            fact.object[language]
            for fact in self.facts_in(language)
            if fact.subject[language] == subject
        }

    def statement(self, fact: Fact, language: str) -> str:
        return fill(self.phrasing[language].statement, fact, language)


def fill(template: str, fact: Fact, language: str) -> str:
    """Put the fact into a template: "an" before a vowel, a capital at the start."""
    text = template
    for slot, value in (("{s}", fact.subject[language]), ("{o}", fact.object[language])):
        if value[0].lower() in "aeio":
            text = text.replace(f" a {slot}", f" an {slot}").replace(f"A {slot}", f"An {slot}")
        text = text.replace(slot, value)
    return text[0].upper() + text[1:] if template.startswith(("{s}", "{o}")) else text


@cache
def load_relations(folder: Path = WORLD) -> tuple[Relation, ...]:
    """Every relation of the world, in the order of the files' names."""
    files = [tomllib.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.toml"))]
    translations = {k: v for file in files for k, v in file.get("translations", {}).items()}
    tables = {table["name"]: table for file in files for table in file.get("table", ())}
    relations = [
        relation
        for file in files
        for spec in file.get("relation", ())
        for relation in _relations(spec, tables, translations)
    ]
    return tuple(relations)


def _relations(
    spec: Mapping[str, Any], tables: Mapping[str, Any], translations: Mapping[str, str]
) -> Iterator[Relation]:
    names = spec.get("tables") or [spec["table"]]
    for name in names:
        table = tables[name]
        yield Relation(
            name=spec["name"] if len(names) == 1 else f"{spec['name']}:{name}",
            category=spec.get("category", table["category"]),
            phrasing={lang: _phrasing(spec[lang], lang) for lang in LANGUAGES if lang in spec},
            facts=tuple(_facts(table, spec["subject"], spec["object"], translations)),
            weight=spec.get("weight", 1.0),
            as_choice=spec.get("as_choice", True),
        )


def _phrasing(spec: Mapping[str, Any], language: str) -> Phrasing:
    held_out = tuple(spec["held_out"])
    framed = frames(spec["ask"], spec["word"], "{s}", language, held_out)
    return Phrasing(spec["statement"], tuple(spec["train"]), held_out, tuple(framed))


def _facts(
    table: Mapping[str, Any], subject: str, object: str, translations: Mapping[str, str]
) -> Iterator[Fact]:
    columns = [column.removesuffix("=") for column in table["columns"]]
    is_neutral = [column.endswith("=") for column in table["columns"]]
    at_subject, at_object = columns.index(subject), columns.index(object)
    for line in table["rows"].strip().splitlines():
        cells = [cell.strip() for cell in line.split(";")]
        if len(cells) != len(columns):
            raise ValueError(f"table {table['name']!r}: {line!r} has not {len(columns)} cells")
        if "-" in (cells[at_subject], cells[at_object]):
            continue
        yield Fact(
            _names(cells[at_subject], is_neutral[at_subject], translations),
            _names(cells[at_object], is_neutral[at_object], translations),
        )


def _names(cell: str, is_neutral: bool, translations: Mapping[str, str]) -> dict[str, str]:
    if is_neutral:
        return dict.fromkeys(LANGUAGES, cell)
    english, _, chinese = cell.partition("|")
    chinese = chinese or translations.get(english, "")
    return {"en": english, "zh": chinese} if chinese else {"en": english}
