"""JSON objects on request: from values in the question, and from facts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from training.conversations.fact_choice import draw_fact
from training.conversations.free_questions import question
from training.conversations.phrasing import worded
from training.conversations.sample import Sample, exchange
from training.conversations.words import (
    COLOURS,
    DAYS,
    GOODS,
    NAMES,
    OBJECTS,
    PLACES,
    cities,
    made_up,
)
from training.split import Split, draw

Value = Callable[[random.Random], Any]

_KEYS: dict[str, Value] = {
    "name": lambda rng: rng.choice(NAMES),
    "age": lambda rng: rng.randint(1, 99),
    "city": lambda rng: rng.choice(cities("en")),
    "colour": lambda rng: rng.choice(COLOURS),
    "object": lambda rng: rng.choice(OBJECTS),
    "day": lambda rng: rng.choice(DAYS),
    "place": lambda rng: rng.choice(PLACES),
    "count": lambda rng: rng.randint(0, 500),
    "price": lambda rng: rng.randint(1, 9999) / 100,
    "active": lambda rng: rng.random() < 0.5,
    "id": lambda rng: rng.randint(1000, 99999),
    "code": lambda rng: made_up(rng).upper(),
    "tags": lambda rng: rng.sample(COLOURS, rng.randint(1, 3)),
    "items": lambda rng: rng.sample(GOODS, rng.randint(1, 3)),
    "note": lambda rng: made_up(rng, 3),
    "email": lambda rng: f"{rng.choice(NAMES).lower()}@{made_up(rng)}.com",
}
_ASK = (
    "Give me a JSON object with {x}.",
    "Return JSON with {x}.",
    "Write a JSON object with {x}.",
    "Answer with a JSON object only: {x}.",
    "Make a JSON object of {x}.",
    "JSON with {x}, please.",
    "Put this into JSON: {x}.",
    "Create a JSON object from {x}.",
    "How does {x} look as JSON?",
    "Turn this into a JSON object: {x}.",
    "Write {x} as JSON.",
    "As JSON: {x}.",
    "Show me the JSON for {x}.",
    "My program reads JSON. Give it {x}.",
    "Use JSON to say {x}.",
    "Format as JSON: {x}.",
    "I have {x}. Make it JSON.",
)
_ASK_HELD_OUT = ("I need a JSON object with {x}.", "Please reply with JSON: {x}.")
_ASK_ZH = (
    "请给我一个JSON对象：{x}。",
    "用JSON表示：{x}。",
    "返回一个JSON对象，包含{x}。",
    "写成JSON：{x}。",
    "把{x}写成JSON。",
    "JSON：{x}。",
)
_ASK_ZH_HELD_OUT = ("请用JSON格式回答：{x}。",)
_THOUGHT = {"en": "I write the keys and values as JSON.", "zh": "我把键和值写成JSON。"}


def json_object(rng: random.Random, split: Split) -> Sample:
    if rng.random() < 0.2:
        return _of_fact(rng, split)
    return _of_values(rng, split)


def _of_values(rng: random.Random, split: Split) -> Sample:
    def make() -> dict[str, Any]:
        keys = rng.sample(sorted(_KEYS), rng.randint(1, 5))
        if rng.random() < 0.2:
            keys[-1] = made_up(rng)
        return {key: _KEYS.get(key, _KEYS["count"])(rng) for key in keys}

    value = draw(make, lambda v: json.dumps(v, sort_keys=True), split)
    language = rng.choices(("en", "zh"), weights=(4, 1))[0]
    is_quoted = rng.random() < 0.5
    if language == "zh":
        listed = "，".join(f"{key}是{_spoken(item, is_quoted)}" for key, item in value.items())
        text = worded(rng, _ASK_ZH, _ASK_ZH_HELD_OUT, split, "zh").replace("{x}", listed)
    else:
        parts = [f"{key} {_spoken(item, is_quoted)}" for key, item in value.items()]
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        text = worded(rng, _ASK, _ASK_HELD_OUT, split).replace("{x}", listed)
    content = json.dumps(value, ensure_ascii=False)
    return exchange("json_object", text, _THOUGHT[language], content, answer=content)


def _of_fact(rng: random.Random, split: Split) -> Sample:
    """A fact of the world, its two ends as values."""
    relation, fact = draw_fact(rng, "en", as_choice=True)
    subject, found = rng.choice((("subject", "answer"), ("question", "answer"), ("key", "value")))
    statement = relation.statement(fact, "en")
    asked = question(rng, split, (relation, fact), "en")
    text = f'{asked} Answer as a JSON object with the keys "{subject}" and "{found}".'
    content = json.dumps(
        {subject: fact.subject["en"], found: fact.object["en"]}, ensure_ascii=False
    )
    return exchange("json_object", text, statement, content, answer=content)


def _spoken(value: Any, is_quoted: bool) -> str:
    """How a person says the value; a text may come without quotes."""
    if isinstance(value, str) and not is_quoted:
        return value
    return json.dumps(value, ensure_ascii=False)
