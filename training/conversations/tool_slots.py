"""The arguments a tool can take: their names, their types, and how people say their values."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.conversations.arithmetic import Sum, is_kept_back
from training.conversations.words import (
    COLOURS,
    DAYS,
    NAMES,
    NAMES_ZH,
    OBJECTS,
    OBJECTS_ZH,
    PLACES,
    WORDS,
    cities,
    digits,
    made_up,
)
from training.split import Split


@dataclass(frozen=True)
class Value:
    """What goes into the call and what the user says."""

    json: Any
    spoken: str


@dataclass(frozen=True)
class Form:
    """One way to type an argument; with `values`, what the user may mean -> what is sent."""

    schema: Mapping[str, Any]
    values: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Slot:
    """`phrase` says an optional argument in a sentence, per language; {v} is its value.

    `held_out` are names of the argument that only the quiz uses; `practised` are enumerations of
    training alone: with few of them a model writes one it knows, whatever the schema lists.
    """

    names: tuple[str, ...]
    held_out: tuple[str, ...]
    described: tuple[str, ...]
    draw: Callable[[random.Random, str], str | Value]
    forms: tuple[Form, ...] = (Form({"type": "string"}),)
    phrase: Mapping[str, str] | None = None
    practised: tuple[Form, ...] = ()

    def form(self, rng: random.Random, split: Split) -> Form:
        """Those of training list their values in any order, half the time."""
        if split == "held_out":
            return rng.choice(self.forms)
        form = rng.choice((*self.forms, *self.practised))
        listed = form.schema.get("enum")
        if listed is None or rng.random() < 0.5:
            return form
        return Form({**form.schema, "enum": rng.sample(listed, len(listed))}, form.values)

    def value(self, rng: random.Random, language: str, form: Form) -> Value:
        """`draw` gives what is meant; the form says how it is sent."""
        drawn = self.draw(rng, language)
        if isinstance(drawn, Value):
            return drawn
        if form.values is None:
            return Value(drawn, drawn)
        return Value(form.values[drawn], SPOKEN[language].get(drawn, drawn))


# How the meanings of enumerations are said.
SPOKEN: Mapping[str, Mapping[str, str]] = {
    "en": {"celsius": "Celsius", "fahrenheit": "Fahrenheit"},
    "zh": {
        "celsius": "摄氏度",
        "fahrenheit": "华氏度",
        "car": "汽车",
        "train": "火车",
        "bike": "自行车",
        "French": "法语",
        "German": "德语",
        "Spanish": "西班牙语",
        "Italian": "意大利语",
        "Japanese": "日语",
        "English": "英语",
        "high": "高",
        "low": "低",
        "normal": "普通",
    },
}


def _enum(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _forms(meant: Sequence[str], *sent: str) -> tuple[Form, ...]:
    """One enumeration for each text of values, in the order of what they mean."""
    return tuple(
        Form(_enum(*values.split()), dict(zip(meant, values.split(), strict=True)))
        for values in sent
    )


def _pick(*choices: str) -> Callable[[random.Random, str], str]:
    return lambda rng, language: rng.choice(choices)


def _number(low: int, high: int) -> Callable[[random.Random, str], Value]:
    def draw(rng: random.Random, language: str) -> Value:
        number = rng.randint(low, high)
        return Value(number, str(number))

    return draw


def place_name(rng: random.Random, language: str) -> str:
    return rng.choice(cities(language)) if rng.random() < 0.85 else made_up(rng).title()


def file_path(rng: random.Random, language: str) -> str:
    stem = rng.choice((rng.choice(WORDS), made_up(rng), rng.choice(OBJECTS)))
    ending = rng.choice((".txt", ".py", ".md", ".json", ".csv", ".log"))
    folder = rng.choice(
        ("", "", f"{rng.choice(PLACES)}/", f"/{rng.choice(WORDS)}/", "src/", "docs/")
    )
    return f"{folder}{stem}{ending}"


def folder_path(rng: random.Random, language: str) -> str:
    return rng.choice(("src", "docs", "/tmp", rng.choice(WORDS), f"/home/{made_up(rng)}"))


def person(rng: random.Random, language: str) -> str:
    return rng.choice(NAMES_ZH if language == "zh" else NAMES)


def topic(rng: random.Random, language: str) -> str:
    if language == "zh":
        return rng.choice(cities("zh")) + rng.choice(
            ("美食", "历史", "地图", "新闻", "酒店", "博物馆")
        )
    matter = rng.choice(("prices", "history", "news", f"in {rng.choice(cities('en'))}"))
    return f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)} {matter}"


def sentence(rng: random.Random, language: str) -> str:
    if language == "zh":
        return (
            rng.choice(("会议", "晚饭", "电影", "考试"))
            + "在"
            + rng.choice(("三点", "五点", "明天", "周五"))
        )
    day = rng.choice(DAYS)
    return rng.choice(
        (
            f"The meeting is on {day}",
            f"Dinner at {rng.randint(1, 12)}",
            f"Call {rng.choice(NAMES)} on {day}",
            f"Bring the {rng.choice(COLOURS)} {rng.choice(OBJECTS)}",
            f"{rng.choice(WORDS)} {rng.choice(WORDS)} {digits(rng, 3)}",
        )
    )


def product(rng: random.Random, language: str) -> str:
    if language == "zh":
        return rng.choice(OBJECTS_ZH)
    return f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)}"


def expression(rng: random.Random, language: str) -> str:
    """A sum that the quiz does not ask: the sentence made of the result would say it."""
    while True:
        left, right = rng.randint(10, 9999), rng.randint(2, 999)
        drawn = Sum(rng.choice(("add", "subtract", "multiply")), left, right)
        if not is_kept_back(drawn):
            return drawn.text


def tags(rng: random.Random, language: str) -> Value:
    chosen = rng.sample(COLOURS + WORDS[:12], rng.randint(1, 3))
    return Value(
        chosen, " and ".join((", ".join(chosen[:-1]), chosen[-1])) if chosen[1:] else chosen[0]
    )


def _on_or_off(rng: random.Random, language: str) -> Value:
    is_on = rng.random() < 0.5
    words = ("打开", "关闭") if language == "zh" else ("on", "off")
    return Value(is_on, words[not is_on])


PLACE = Slot(
    ("city", "location", "place", "town", "city_name", "where"),
    ("municipality", "locality"),
    ("The city", "Name of the city", "Where to look", "City name, for example Paris"),
    place_name,
)
UNIT = Slot(
    ("unit", "units", "scale", "temperature_unit", "temp_unit"),
    ("degree_scale",),
    ("Unit of temperature", "Temperature scale", "The unit to use"),
    _pick("celsius", "fahrenheit"),
    (
        Form(_enum("celsius", "fahrenheit"), {"celsius": "celsius", "fahrenheit": "fahrenheit"}),
        Form(_enum("C", "F"), {"celsius": "C", "fahrenheit": "F"}),
        Form(_enum("metric", "imperial"), {"celsius": "metric", "fahrenheit": "imperial"}),
    ),
    {"en": " in degrees {v}", "zh": "，用{v}表示"},
    _forms(
        ("celsius", "fahrenheit"),
        "c f",
        "Celsius Fahrenheit",
        "CELSIUS FAHRENHEIT",
        "degC degF",
        "deg_c deg_f",
        "centigrade fahrenheit",
        "si us",
        "METRIC IMPERIAL",
    ),
)
NUM_DAYS = Slot(
    ("days", "num_days", "day_count", "forecast_days"),
    ("horizon",),
    ("Number of days", "How many days ahead"),
    _number(1, 10),
    (Form({"type": "integer"}),),
    {"en": " for the next {v} days", "zh": "，未来{v}天"},
)
QUERY = Slot(
    ("query", "q", "search_term", "keywords", "question", "text"),
    ("phrase",),
    ("What to search for", "The search query", "Words to look for"),
    topic,
)
NUM_RESULTS = Slot(
    ("limit", "max_results", "count", "num_results", "top_k"),
    ("how_many",),
    ("Number of results", "How many results to return"),
    _number(1, 20),
    (Form({"type": "integer"}),),
    {"en": " and return {v} results", "zh": "，返回{v}条结果"},
)
EXPRESSION = Slot(
    ("expression", "expr", "formula", "input", "calculation"),
    ("term",),
    ("The expression to compute", "An arithmetic expression", "What to calculate"),
    expression,
)
PATH = Slot(
    ("path", "file", "filename", "file_path", "file_name"),
    ("document",),
    ("Path of the file", "The file", "Name of the file"),
    file_path,
)
FOLDER = Slot(
    ("folder", "directory", "path", "dir"),
    ("location_on_disk",),
    ("The folder", "Path of the directory", "Where to look"),
    folder_path,
)
CONTENT = Slot(
    ("content", "text", "data", "body"),
    ("contents_to_write",),
    ("Text to write", "The new content", "What to put into the file"),
    sentence,
)
RECIPIENT = Slot(
    ("to", "recipient", "name", "receiver", "person"),
    ("addressee",),
    ("Who gets the message", "Name of the person", "The recipient"),
    person,
)
MESSAGE = Slot(
    ("message", "text", "body", "content"),
    ("wording",),
    ("The message", "Text of the message", "What to say"),
    sentence,
)
URGENCY = Slot(
    ("priority", "urgency", "importance"),
    ("severity",),
    ("How urgent it is", "Priority of the message"),
    _pick("high", "low", "normal"),
    (
        Form(
            _enum("low", "normal", "high"),
            {"low": "low", "normal": "normal", "high": "high"},
        ),
    ),
    {"en": " with {v} priority", "zh": "，优先级{v}"},
    _forms(
        ("low", "normal", "high"),
        "LOW NORMAL HIGH",
        "minor default urgent",
        "p3 p2 p1",
        "L N H",
        "later usual now",
    ),
)
TARGET_LANGUAGE = Slot(
    ("language", "target_language", "to", "target", "lang"),
    ("into",),
    ("Language to translate into", "The target language"),
    _pick("French", "German", "Spanish", "Italian", "Japanese", "English"),
    (
        Form(
            {"type": "string"},
            {n: n for n in ("French", "German", "Spanish", "Italian", "Japanese", "English")},
        ),
        Form(
            _enum("fr", "de", "es", "it", "ja", "en"),
            {
                "French": "fr",
                "German": "de",
                "Spanish": "es",
                "Italian": "it",
                "Japanese": "ja",
                "English": "en",
            },
        ),
    ),
    practised=_forms(
        ("French", "German", "Spanish", "Italian", "Japanese", "English"),
        "French German Spanish Italian Japanese English",
        "french german spanish italian japanese english",
        "FR DE ES IT JA EN",
        "fra deu spa ita jpn eng",
        "fr-FR de-DE es-ES it-IT ja-JP en-US",
        "F G S I J E",
    ),
)
MINUTES = Slot(
    ("minutes", "delay", "in_minutes", "duration"),
    ("wait",),
    ("In how many minutes", "Minutes from now", "Delay in minutes"),
    _number(1, 120),
    (Form({"type": "integer"}), Form({"type": "number"})),
)
TASK = Slot(
    ("task", "text", "title", "reminder", "what"),
    ("errand",),
    ("What to remind of", "The task", "Text of the reminder"),
    sentence,
)
PRODUCT = Slot(
    ("product", "item", "name", "article", "product_name"),
    ("merchandise",),
    ("Name of the product", "The item", "What to look up"),
    product,
)
START = Slot(
    ("origin", "start", "from", "from_city", "source"),
    ("departure",),
    ("Where the trip starts", "Start of the trip"),
    place_name,
)
END = Slot(
    ("destination", "end", "to", "to_city", "target"),
    ("arrival",),
    ("Where the trip ends", "End of the trip"),
    place_name,
)
VEHICLE = Slot(
    ("mode", "vehicle", "by", "transport"),
    ("means",),
    ("How to travel", "Means of transport"),
    _pick("car", "train", "bike"),
    (Form(_enum("car", "train", "bike"), {"car": "car", "train": "train", "bike": "bike"}),),
    {"en": " by {v}", "zh": "，乘{v}"},
    _forms(
        ("car", "train", "bike"),
        "CAR TRAIN BIKE",
        "driving rail cycling",
        "road railway bicycle",
        "auto train velo",
        "by_car by_train by_bike",
    ),
)
_ROOMS = ("kitchen", "bedroom", "office", "garden", "hall", "bathroom")
ROOM = Slot(
    ("room", "place", "location", "area"),
    ("zone",),
    ("The room", "Which room"),
    _pick(*_ROOMS),
    practised=(
        Form({"type": "string"}),
        *_forms(
            _ROOMS,
            "kitchen bedroom office garden hall bathroom",
            "KITCHEN BEDROOM OFFICE GARDEN HALL BATHROOM",
            "the_kitchen the_bedroom the_office the_garden the_hall the_bathroom",
        ),
    ),
)
IS_ON = Slot(
    ("on", "state", "power", "enabled", "is_on"),
    ("lit",),
    ("Whether the light is on", "True for on, false for off"),
    _on_or_off,
    (Form({"type": "boolean"}),),
)
BRIGHTNESS = Slot(
    ("brightness", "level", "percent", "intensity"),
    ("glow",),
    ("Brightness in percent", "How bright, from 0 to 100"),
    _number(1, 100),
    (Form({"type": "integer", "minimum": 0, "maximum": 100}), Form({"type": "integer"})),
    {"en": " at {v} percent", "zh": "，亮度{v}"},
)
USER_ID = Slot(
    ("user_id", "id", "customer_id", "number"),
    ("account_number",),
    ("Number of the user", "The user's id"),
    _number(100, 99999),
    (Form({"type": "integer"}),),
)
TITLE = Slot(
    ("title", "name", "heading", "subject"),
    ("caption",),
    ("Title of the note", "The heading"),
    sentence,
)
TAGS = Slot(
    ("tags", "labels", "keywords", "topics"),
    ("markers",),
    ("Tags of the note", "Labels to attach"),
    tags,
    (Form({"type": "array", "items": {"type": "string"}}),),
    {"en": " with the tags {v}", "zh": "，标签为{v}"},
)
AMOUNT = Slot(
    ("amount", "value", "sum", "quantity"),
    ("how_much",),
    ("How much money", "The amount to convert"),
    _number(1, 5000),
    (Form({"type": "number"}), Form({"type": "integer"})),
)
_CODES = ("USD", "EUR", "GBP", "JPY", "CNY", "CHF", "INR", "BRL", "SEK", "AUD")
FROM_CURRENCY = Slot(
    ("from_currency", "source", "base", "from"),
    ("given_currency",),
    ("Currency of the amount", "Code of the source currency"),
    _pick(*_CODES[:5]),
)
TO_CURRENCY = Slot(
    ("to_currency", "target", "quote", "to"),
    ("wanted_currency",),
    ("Currency to convert into", "Code of the target currency"),
    _pick(*_CODES[5:]),
)
