"""What tools are for, read from `tool_domains.toml`."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.conversations import tool_slots
from training.conversations.tool_results import RESULTS, Result, Values
from training.conversations.tool_slots import Slot
from training.facts import LANGUAGES

DATA = Path(__file__).with_name("tool_domains.toml")


@dataclass(frozen=True)
class Wording:
    """How one language asks and answers; what is `incomplete` lacks what `asked_back` asks for."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    incomplete: tuple[str, ...]
    asked_back: str


@dataclass(frozen=True)
class Domain:
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    held_out_nouns: tuple[str, ...]
    described: tuple[str, ...]
    required: Mapping[str, Slot]
    optional: Mapping[str, Slot]
    result: Callable[[random.Random, Values, str], Result]
    wording: Mapping[str, Wording]


def _domain(spec: Mapping[str, Any]) -> Domain:
    return Domain(
        verbs=tuple(spec["verbs"]),
        nouns=tuple(spec["nouns"]),
        held_out_nouns=tuple(spec["held_out_nouns"]),
        described=tuple(spec["described"]),
        required=_slots(spec["required"]),
        optional=_slots(spec["optional"]),
        result=RESULTS[spec["result"]],
        wording={language: _wording(spec[language]) for language in LANGUAGES},
    )


def _slots(names: Mapping[str, str]) -> dict[str, Slot]:
    return {key: getattr(tool_slots, name) for key, name in names.items()}


def _wording(spec: Mapping[str, Any]) -> Wording:
    return Wording(
        tuple(spec["train"]),
        tuple(spec["held_out"]),
        spec["answer"],
        tuple(spec.get("incomplete", ())),
        spec.get("asked_back", ""),
    )


DOMAINS: Mapping[str, Domain] = {
    name: _domain(spec) for name, spec in tomllib.loads(DATA.read_text("utf-8")).items()
}
