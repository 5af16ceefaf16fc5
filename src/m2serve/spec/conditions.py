"""Conditions of known issues: tables of facts held against a Situation. Pure, no torch.

A condition is a table; every entry must hold. An entry is a fact of the Situation and what it must
be:

    text       "sglang", "!sglang", "lukealonso/*"; a list is one of them
    version    ">=0.15,<0.17" (engine_version alone)
    number     8, a list, or ">=8,<64", "divides 12", "not divides 12", ">checkpoint_max_model_len"
    yes or no  true, false
    set        ["--enforce-eager", "!--moe-backend=triton"]: each there, with "!" not there; a flag
               without "=" also stands for the flag with any value

Each is True, False or, on an unknown fact, None; so is the condition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from m2serve.errors import M2Error, UsageError
from m2serve.spec.situation import Situation
from m2serve.spec.versions import Version, is_within

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda own, limit: own >= limit,
    "<=": lambda own, limit: own <= limit,
    "==": lambda own, limit: own == limit,
    "!=": lambda own, limit: own != limit,
    ">": lambda own, limit: own > limit,
    "<": lambda own, limit: own < limit,
    "not divides ": lambda own, whole: whole % own != 0,
    "divides ": lambda own, whole: whole % own == 0,
}
_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Situation)}
_NUMBERS = {name for name, kind in _FIELDS.items() if kind in ("int", "float")}
_SETS = {name for name, kind in _FIELDS.items() if kind.startswith("frozenset")}
_BOOLS = {name for name, kind in _FIELDS.items() if kind.startswith("bool")}


@dataclass(frozen=True)
class Term:
    """One entry: the fact, and the alternatives (text, number) or members (set) asked of it."""

    fact: str
    wanted: tuple[str, ...]

    def holds(self, situation: Situation) -> bool | None:
        """None when the fact is unknown."""
        own = getattr(situation, self.fact)
        if own is None or (self.fact not in _BOOLS | _SETS and not own):
            return None
        if self.fact in _SETS:
            return all(_is_member(wanted, own) for wanted in self.wanted)
        if self.fact in _BOOLS:
            return str(own).lower() in self.wanted
        if self.fact == "engine_version":
            return _is_version(own, self.wanted[0])
        if self.fact in _NUMBERS:
            return _any(_number_holds(own, wanted, situation) for wanted in self.wanted)
        return any(_text_holds(own, wanted) for wanted in self.wanted)


@dataclass(frozen=True)
class Condition:
    terms: tuple[Term, ...]

    def holds(self, situation: Situation) -> bool | None:
        """False when one term is, else None when one is unknown, else True."""
        return _all(term.holds(situation) for term in self.terms)

    def wanted(self, fact: str) -> tuple[str, ...]:
        """What is asked of a fact, empty when nothing is."""
        return next((term.wanted for term in self.terms if term.fact == fact), ())


def read_condition(table: Any, place: str) -> Condition:
    """A TOML table as a Condition; M2Error names the place, the fact and what is wrong with it."""
    if not isinstance(table, Mapping) or not table:
        raise M2Error(f"{place}: a table with at least one fact is needed, not {table!r}")
    return Condition(
        tuple(_read_term(fact, value, f"{place}, {fact}") for fact, value in table.items())
    )


def read_situation(table: Any, place: str) -> Situation:
    """A TOML table as a Situation; M2Error names the place and the fact."""
    if not isinstance(table, Mapping):
        raise M2Error(f"{place}: a table is needed, not {table!r}")
    facts: dict[str, Any] = {}
    for fact, value in table.items():
        if fact not in _FIELDS:
            raise M2Error(f"{place}: fact {fact!r} is unknown")
        wanted = _kind_of(fact)
        if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
            raise M2Error(f"{place}, {fact}: {value!r} has the wrong type")
        facts[fact] = frozenset(value) if fact in _SETS else value
    return Situation(**facts)


def any_holds(conditions: Iterable[Condition], situation: Situation) -> bool | None:
    """True when one does, else None when one is unknown or there are none, else False."""
    results = [condition.holds(situation) for condition in conditions]
    return _any(results) if results else None


def _kind_of(fact: str) -> Any:
    if fact in _SETS:
        return list
    if fact in _BOOLS:
        return bool
    return int | float if fact in _NUMBERS else str


def _read_term(fact: str, value: Any, place: str) -> Term:
    if fact not in _FIELDS:
        raise M2Error(f"{place}: fact {fact!r} is unknown")
    values = value if isinstance(value, list) else [value]
    if not values or (fact in _SETS and not isinstance(value, list)):
        raise M2Error(f"{place}: {value!r} is empty, or no list where one is needed")
    for one in values:
        if isinstance(one, bool) != (fact in _BOOLS):
            raise M2Error(f"{place}: {one!r} has the wrong type")
        if fact in _NUMBERS:
            _check_number(one, place)
        elif fact not in _BOOLS and (not isinstance(one, str) or not one.strip("!")):
            raise M2Error(f"{place}: {one!r} is not text")
    if fact == "engine_version":
        _check_version(value, place)
    return Term(fact, tuple(str(one).lower() if fact in _BOOLS else str(one) for one in values))


def _check_number(value: Any, place: str) -> None:
    if isinstance(value, int | float):
        return
    if not isinstance(value, str):
        raise M2Error(f"{place}: {value!r} is no number and no bound")
    for part in value.split(","):
        operator = _operator(part)
        if operator is None:
            raise M2Error(f"{place}: bound {part!r} begins with none of {', '.join(_OPERATORS)}")
        limit = part.strip().removeprefix(operator).strip()
        if limit not in _NUMBERS and not limit.replace(".", "", 1).replace("e", "", 1).isdecimal():
            raise M2Error(f"{place}: bound {part!r} ends in no number and no fact")


def _check_version(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise M2Error(f"{place}: {value!r} is no version range")
    try:
        is_within("1.0", value)
    except UsageError as error:
        raise M2Error(f"{place}: {error}") from error


def _operator(part: str) -> str | None:
    return next((operator for operator in _OPERATORS if part.strip().startswith(operator)), None)


def _number_holds(own: float, wanted: str, situation: Situation) -> bool | None:
    """A plain number, or every comma-separated bound."""
    parts = wanted.split(",")
    if _operator(parts[0]) is None:
        return own == float(wanted)
    return _all(_bound_holds(own, part.strip(), situation) for part in parts)


def _bound_holds(own: float, part: str, situation: Situation) -> bool | None:
    operator = _operator(part) or "=="
    text = part.removeprefix(operator).strip()
    limit = float(getattr(situation, text) if text in _NUMBERS else text)
    if text in _NUMBERS and not limit:
        return None
    return _OPERATORS[operator](own, limit)


def _is_version(own: str, ranges: str) -> bool | None:
    """None for a version that cannot be ordered, such as a commit."""
    try:
        Version.parse(own)
    except UsageError:
        return None
    return is_within(own, ranges)


def _text_holds(own: str, wanted: str) -> bool:
    if wanted.startswith("!"):
        return not fnmatchcase(own, wanted[1:])
    return fnmatchcase(own, wanted)


def _is_member(wanted: str, own: frozenset[str]) -> bool:
    if wanted.startswith("!"):
        return not _is_member(wanted[1:], own)
    return any(_entry_holds(entry, wanted) for entry in own)


def _entry_holds(entry: str, wanted: str) -> bool:
    """Flags may be written with "_" for "-"; variables may not."""
    name, equals, value = entry.partition("=")
    if name.startswith("--"):
        name = name.replace("_", "-")
    if "=" not in wanted:
        return name == wanted
    return fnmatchcase(f"{name}{equals}{value}", wanted)


def _all(results: Iterable[bool | None]) -> bool | None:
    found = set(results)
    return False if False in found else None if None in found else True


def _any(results: Iterable[bool | None]) -> bool | None:
    found = set(results)
    return True if True in found else None if None in found else False
