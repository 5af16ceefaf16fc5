"""Tool definitions put together from parts, so that those of the quiz never occur in training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2serve.chat.tools import Tool, parse_tools
from training.conversations.tool_domains import DOMAINS, Domain
from training.conversations.tool_slots import Form, Slot
from training.conversations.words import (
    GOODS,
    NAME_WORDS,
    OBJECTS,
    PLACES,
    WORDS,
    made_up,
    token_word,
    wide_word,
)
from training.split import MAX_DRAWS, Split, split_of

# Schemas of public documents, which the miniature must meet unprepared.
RESERVED = frozenset(
    {"get_current_weather(city,unit)", "get_weather(city)", "get_weather(location)"}
)
HELD_OUT_WORD_SHARE = 0.3
# Names that only the schema tells. With few of them a model learns the usual names by heart and
# writes `location` where the schema says `locality`.
MADE_UP_SHARE = {"train": 0.6, "held_out": 0.15}
MADE_UP_PARAMETER_SHARE = {"train": 0.6, "held_out": 0.075}
# Words of names that only the quiz uses.
KEPT_BACK = frozenset(
    name
    for domain in DOMAINS.values()
    for names in (
        domain.held_out_nouns,
        *(slot.held_out for slot in (*domain.required.values(), *domain.optional.values())),
    )
    for name in names
)


@dataclass(frozen=True)
class Parameter:
    name: str
    slot: Slot
    form: Form


@dataclass(frozen=True)
class OfferedTool:
    """A tool and what we know of it: its domain and which parameter is which slot."""

    domain: Domain
    tool: Tool
    parameters: Mapping[str, Parameter]

    @property
    def signature(self) -> str:
        return signature_of(self.tool.name, [p.name for p in self.parameters.values()])


def signature_of(name: str, parameters: list[str]) -> str:
    return f"{name}({','.join(sorted(parameters))})"


def schema_split(signature: str) -> Split:
    return "held_out" if signature in RESERVED else split_of(signature)


def draw_tool(
    rng: random.Random, split: Split, domain_name: str, pieces: Sequence[str] = ()
) -> OfferedTool:
    """A tool of the domain whose name and parameters belong to the split.

    Odd names of training are made of `pieces`, the tokens' texts, half the time where given.
    """
    for _ in range(MAX_DRAWS):
        offered = _make(rng, split, DOMAINS[domain_name], pieces)
        if schema_split(offered.signature) == split:
            return offered
    raise RuntimeError(f"no {split} schema for {domain_name!r} in {MAX_DRAWS} tries")


def draw_tools(
    rng: random.Random,
    split: Split,
    wanted: list[str],
    num_others: int,
    pieces: Sequence[str] = (),
) -> list[OfferedTool]:
    """One tool for each wanted domain and some of other domains, under different names."""
    others = rng.sample(sorted(set(DOMAINS) - set(wanted)), num_others)
    offered: dict[str, OfferedTool] = {}
    for name in (*wanted, *others):
        tool = draw_tool(rng, split, name, pieces)
        while tool.tool.name in offered:
            tool = draw_tool(rng, split, name, pieces)
        offered[tool.tool.name] = tool
    return list(offered.values())


def _make(rng: random.Random, split: Split, domain: Domain, pieces: Sequence[str]) -> OfferedTool:
    optional = {name: slot for name, slot in domain.optional.items() if rng.random() < 0.6}
    parameters: dict[str, Parameter] = {}
    for key, slot in {**domain.required, **optional}.items():
        taken = {parameter.name for parameter in parameters.values()}
        name = _parameter_name(rng, split, slot, taken, pieces)
        parameters[key] = Parameter(name, slot, slot.form(rng, split))
    is_camel = rng.random() < 0.2
    if is_camel:
        parameters = {
            key: Parameter(_camel(p.name), p.slot, p.form) for key, p in parameters.items()
        }
    name = _tool_name(rng, split, domain, pieces)
    definition = _definition(rng, _camel(name) if is_camel else name, domain, parameters)
    [tool] = parse_tools([{"type": "function", "function": definition}])
    return OfferedTool(domain, tool, parameters)


def _definition(
    rng: random.Random, name: str, domain: Domain, parameters: Mapping[str, Parameter]
) -> dict[str, Any]:
    properties = {}
    for parameter in parameters.values():
        schema = dict(parameter.form.schema)
        if rng.random() < 0.6:
            schema["description"] = rng.choice(parameter.slot.described)
        properties[parameter.name] = schema
    required = [parameters[key].name for key in domain.required]
    shape: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": rng.choice(domain.described), "parameters": shape}


def _tool_name(rng: random.Random, split: Split, domain: Domain, pieces: Sequence[str]) -> str:
    if rng.random() < MADE_UP_SHARE[split]:
        return f"{rng.choice(domain.verbs)}_{_odd_name(rng, split, pieces)}"
    nouns = domain.nouns
    if split == "held_out" and rng.random() < HELD_OUT_WORD_SHARE:
        nouns = domain.held_out_nouns
    name = f"{rng.choice(domain.verbs)}_{rng.choice(nouns)}"
    return name if rng.random() < 0.8 else f"{name}_{rng.choice(('tool', 'v2', 'api', 'service'))}"


def _parameter_name(
    rng: random.Random, split: Split, slot: Slot, taken: set[str], pieces: Sequence[str]
) -> str:
    names = slot.names
    if split == "held_out" and rng.random() < HELD_OUT_WORD_SHARE:
        names = slot.held_out
    elif rng.random() < MADE_UP_PARAMETER_SHARE[split]:
        names = (_odd_name(rng, split, pieces),)
    free = [name for name in names if name not in taken]
    return rng.choice(free) if free else made_up(rng)


def _odd_name(rng: random.Random, split: Split, pieces: Sequence[str]) -> str:
    """A made-up word; in training also one to four words that have nothing to do with the tool."""
    if split == "held_out":
        return made_up(rng)
    name = _words(rng, pieces)
    while not KEPT_BACK.isdisjoint({name, *name.split("_")}):
        name = _words(rng, pieces)
    return name


def _words(rng: random.Random, pieces: Sequence[str]) -> str:
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    if rng.random() < 0.2:
        return made_up(rng)
    if pieces and rng.random() < 0.4:
        return "_".join(_latin_word(rng, pieces) for _ in range(min(count, 2)))
    if rng.random() < 0.4:
        return "_".join(wide_word(rng) for _ in range(min(count, 2)))
    if rng.random() < 0.6:
        return "_".join(rng.sample(NAME_WORDS, count))
    return "_".join(rng.sample((*WORDS, *OBJECTS, *PLACES, *GOODS), min(count, 2)))


def _latin_word(rng: random.Random, pieces: Sequence[str]) -> str:
    word = token_word(rng, pieces)
    while not word.isascii():
        word = token_word(rng, pieces)
    return word


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
