"""What tools return, and what of it is said: one function for each kind of result."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from training.conversations import tool_slots as slots
from training.conversations.fact_choice import draw_fact
from training.conversations.tool_slots import Value
from training.conversations.words import NAMES, made_up

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Result:
    """`text` is what the tool returns; `said` completes the domain's answer ({name} slots)."""

    text: str
    said: Mapping[str, str] = field(default_factory=dict)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_CONDITIONS = {
    "sunny": "晴",
    "cloudy": "多云",
    "rainy": "雨",
    "snowy": "雪",
    "windy": "有风",
    "foggy": "雾",
    "overcast": "阴",
    "stormy": "暴风雨",
}

_FAHRENHEIT = tuple(spoken["fahrenheit"] for spoken in slots.SPOKEN.values())


def weather(rng: random.Random, values: Values, language: str) -> Result:
    condition = rng.choice(sorted(_CONDITIONS))
    shown = condition if language == "en" or rng.random() < 0.4 else _CONDITIONS[condition]
    unit = values["unit"].json if "unit" in values else "celsius"
    is_fahrenheit = "unit" in values and values["unit"].spoken in _FAHRENHEIT
    degrees = rng.randint(20, 100) if is_fahrenheit else rng.randint(-15, 40)
    sign = "°F" if is_fahrenheit else "°C"
    key = rng.choice(("temperature", "temp", "degrees"))
    what = rng.choice(("condition", "weather", "conditions", "description", "sky"))
    reading: dict[str, Any] = {key: degrees, what: shown}
    if rng.random() < 0.4:
        reading["humidity"] = rng.randint(10, 99)
    if rng.random() < 0.4:
        reading = {rng.choice(("city", "location")): values["place"].json, **reading}
    if rng.random() < 0.4:
        reading["unit"] = unit
    texts = (f"{degrees}{sign}, {shown}", f"{shown}, {degrees}{sign}", f"{shown} {degrees}{sign}")
    text = _json(reading) if rng.random() < 0.7 else rng.choice(texts)
    said = condition if language == "en" else _CONDITIONS[condition]
    return Result(text, {"condition": said, "degrees": f"{degrees}{sign}"})


def search(rng: random.Random, values: Values, language: str) -> Result:
    relation, fact = draw_fact(rng, language, as_choice=True)
    snippet = relation.statement(fact, language)
    hit = {
        rng.choice(("title", "name")): values["query"].spoken,
        rng.choice(("snippet", "text")): snippet,
    }
    text = rng.choice((_json([hit]), _json({"results": [hit]}), snippet))
    return Result(text, {"found": snippet})


def calculator(rng: random.Random, values: Values, language: str) -> Result:
    left, sign, right = values["expression"].json.split()
    a, b = int(left), int(right)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    key = rng.choice(("result", "value", "answer"))
    return Result(rng.choice((str(result), _json({key: result}))), {"result": str(result)})


def read_file(rng: random.Random, values: Values, language: str) -> Result:
    text = slots.sentence(rng, language)
    wrapped = rng.choice((text, text, _json({"content": text})))
    return Result(wrapped, {"content": text})


def done(rng: random.Random, values: Values, language: str) -> Result:
    return Result(
        rng.choice(("ok", "done", "success", _json({"status": "ok"}), _json({"ok": True})))
    )


def list_files(rng: random.Random, values: Values, language: str) -> Result:
    names = [slots.file_path(rng, language).rpartition("/")[2] for _ in range(rng.randint(1, 4))]
    text = rng.choice(("\n".join(names), _json(names), _json({"files": names})))
    return Result(text, {"files": _joined(names, language)})


def _joined(names: list[str], language: str) -> str:
    if len(names) == 1:
        return names[0]
    word = "和" if language == "zh" else " and "
    comma = "、" if language == "zh" else ", "
    return comma.join(names[:-1]) + word + names[-1]


def time(rng: random.Random, values: Values, language: str) -> Result:
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    return Result(
        rng.choice((clock, _json({"time": clock}), _json({"local_time": clock}))), {"clock": clock}
    )


def translate(rng: random.Random, values: Values, language: str) -> Result:
    text = " ".join(made_up(rng) for _ in range(rng.randint(2, 4)))
    return Result(rng.choice((text, _json({"translation": text}))), {"translation": text})


def convert(rng: random.Random, values: Values, language: str) -> Result:
    amount = rng.randint(100, 999_999) / 100
    key = rng.choice(("result", "amount", "converted"))
    return Result(rng.choice((str(amount), _json({key: amount}))), {"converted": str(amount)})


def price(rng: random.Random, values: Values, language: str) -> Result:
    price = rng.randint(100, 99_999) / 100
    stock = rng.randint(1, 99)
    text = rng.choice(
        (_json({"price": price, "stock": stock}), _json({"price": price}), str(price))
    )
    return Result(text, {"price": str(price)})


def route(rng: random.Random, values: Values, language: str) -> Result:
    km, minutes = rng.randint(2, 2000), rng.randint(5, 900)
    text = rng.choice((_json({"distance_km": km, "minutes": minutes}), f"{km} km, {minutes} min"))
    return Result(text, {"km": str(km), "minutes": str(minutes)})


def user(rng: random.Random, values: Values, language: str) -> Result:
    name, town = rng.choice(NAMES), slots.place_name(rng, "en")
    return Result(_json({"name": name, "city": town}), {"name": name, "town": town})


RESULTS: Mapping[str, Callable[[random.Random, Values, str], Result]] = {
    "weather": weather,
    "search": search,
    "calculator": calculator,
    "read_file": read_file,
    "done": done,
    "list_files": list_files,
    "time": time,
    "translate": translate,
    "convert": convert,
    "price": price,
    "route": route,
    "user": user,
}
