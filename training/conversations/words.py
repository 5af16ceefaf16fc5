"""Names, things and made-up words the generators draw from."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from training.facts import load_relations

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kate",
    "Leo", "Mia", "Noah", "Olga", "Peter", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor",
    "Wendy", "Yara", "Zoe",
)  # fmt: skip
NAMES_ZH = ("小明", "小红", "小李", "小王", "小张", "小刚", "小芳", "小华", "小林", "小雨")
COLOURS = (
    "red", "blue", "green", "black", "white", "yellow", "brown", "grey", "purple", "orange",
    "silver", "golden", "pink",
)  # fmt: skip
OBJECTS = (
    "box", "door", "bag", "lamp", "chair", "table", "bottle", "book", "key", "clock", "car",
    "bike", "house", "garden", "window", "drawer", "phone", "ticket", "locker", "safe", "boat",
    "tower", "bridge", "train", "cup", "stone", "basket", "robot", "engine", "folder",
)  # fmt: skip
OBJECTS_ZH = ("盒子", "门", "包", "灯", "椅子", "瓶子", "书", "钥匙", "汽车", "抽屉", "柜子", "船")
COLOURS_ZH = ("红", "蓝", "绿", "黑", "白", "黄", "紫", "灰")
PLACES = (
    "market", "station", "library", "office", "park", "school", "museum", "harbour", "airport",
    "hotel", "bakery", "farm", "theatre", "hospital", "kitchen", "workshop",
)  # fmt: skip
GOODS = (
    "apples", "books", "coins", "cards", "pens", "eggs", "letters", "tickets", "flowers", "shirts",
    "lamps", "plates", "stones", "maps", "bottles", "keys",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS = (
    "river", "cloud", "paper", "music", "light", "winter", "summer", "silver", "garden", "letter",
    "number", "yellow", "simple", "window", "forest", "bridge", "market", "orange", "doctor",
    "engine", "planet", "animal", "coffee", "dinner", "friend", "island", "kitchen", "lemon",
    "mirror", "ocean", "pencil", "rabbit", "school", "ticket", "village", "weather", "copper",
    "desert", "eagle", "flower", "guitar", "hammer", "jacket", "ladder", "magnet", "needle",
)  # fmt: skip
# What programs call their functions and arguments: read in every schema, said in few answers.
NAME_WORDS = (
    "account", "address", "amount", "audio", "body", "branch", "buffer", "by", "cache", "calendar",
    "cart", "column", "commit", "contact", "content", "count", "country", "currency", "current",
    "customer", "daily", "data", "date", "degree", "device", "disk", "distance", "draft",
    "email", "entry", "event", "field", "filter", "folder", "for", "format", "from", "full",
    "group", "hour", "image", "index", "invoice", "issue", "job", "key", "label", "language",
    "latest", "length", "limit", "line", "local", "map", "message", "minute", "mode", "month",
    "note", "of", "offset", "on", "order", "page", "path", "payment", "permission", "person",
    "photo", "place", "price", "private", "profile", "public", "query", "queue", "quick", "rate",
    "recent", "record", "region", "report", "role", "room", "route", "row", "scale", "sensor",
    "sentence", "session", "size", "source", "speed", "state", "status", "stock", "stream",
    "street", "subject", "sum", "switch", "table", "tag", "target", "task", "team", "text",
    "ticket", "title", "to", "token", "trip", "type", "unit", "user", "value", "version", "video",
    "week", "with", "word", "year",
)  # fmt: skip

_ONSETS = ("b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "n", "r", "s", "l", "x", "m")


def made_up(rng: random.Random, num_syllables: int = 2) -> str:
    """A word that means nothing, so that copying cannot lean on knowing it."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(num_syllables)
    )


def digits(rng: random.Random, count: int) -> str:
    """A number of `count` digits as text; the first is not zero."""
    return str(rng.randint(10 ** (count - 1), 10**count - 1))


@cache
def cities(language: str) -> tuple[str, ...]:
    """Capitals and a few more, by their names in the language."""
    capital = next(relation for relation in load_relations() if relation.name == "capital")
    named = [fact.object[language] for fact in capital.facts_in(language)]
    return (*named, *_MORE_CITIES[language])


_MORE_CITIES = {
    "en": (
        "New York", "San Francisco", "Los Angeles", "Chicago", "Boston", "Seattle", "Toronto",
        "Sydney", "Melbourne", "Munich", "Hamburg", "Cologne", "Lyon", "Marseille", "Milan",
        "Naples", "Barcelona", "Porto", "Istanbul", "Dubai", "Mumbai", "Shanghai", "Shenzhen",
        "Osaka", "Kyoto", "Geneva", "Zurich", "Krakow", "Singapore", "Hong Kong",
    ),
    "zh": (
        "上海", "广州", "深圳", "杭州", "南京", "成都", "武汉", "西安", "重庆", "天津", "苏州",
        "青岛", "大连", "厦门", "长沙", "昆明", "纽约", "旧金山", "悉尼", "米兰", "大阪",
    ),
}  # fmt: skip


@cache
def _world_words() -> tuple[str, ...]:
    """Every English word of the world's facts, in small letters."""
    texts = (
        relation.statement(fact, "en")
        for relation in load_relations()
        for fact in relation.facts_in("en")
    )
    found = {word.lower() for text in texts for word in re.findall(r"[A-Za-z]{3,12}", text)}
    return tuple(sorted(found))


def token_word(rng: random.Random, pieces: Sequence[str]) -> str:
    """One to three tokens of the vocabulary in a row ("localsky"), sometimes with a capital.

    A token that is only ever read cannot be copied: weights that had met "document" in thousands of
    prompts and never had to say it without a space before it wrote another word every time.
    """
    word = "".join(rng.choice(pieces) for _ in range(rng.choice((1, 1, 2, 3))))
    return word.title() if rng.random() < 0.15 else word


def wide_word(rng: random.Random) -> str:
    """A word of the world, or the head of one and the tail of another ("munology").

    Names made of few words leave most tokens of the vocabulary uncopied: a model that copied
    "get_quick_lamp" without a fault wrote "get_local_sdon_cup" for "get_local_sky_conditions".
    """
    first, second = rng.choices(_world_words(), k=2)
    if rng.random() < 0.5:
        return first
    return first[: rng.randint(2, len(first))] + second[rng.randint(0, len(second) - 2) :]
