"""Finding sentences in a long text: one or several needles at any depth, asked one after the other.

The text lies in the first user message; later questions come as turns of their own, so one long
prompt gives several lessons.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from m2serve.chat.messages import Assistant, Turn, User
from training.conversations.filler import filler_line
from training.conversations.phrasing import frames, worded
from training.conversations.sample import Sample
from training.conversations.words import (
    COLOURS,
    COLOURS_ZH,
    NAMES,
    NAMES_ZH,
    OBJECTS,
    OBJECTS_ZH,
    WORDS,
    cities,
    digits,
    made_up,
    wide_word,
)
from training.split import Split, draw

Measure = Callable[[str], float]
CHARS_PER_TOKEN = 3.0  # of filler under the miniature's tokenizer, a little low to stay inside
TURN_TOKENS = 35  # of a further question and its answer


Asked = tuple[tuple[str, ...], tuple[str, ...]]  # in training, in the quiz


@dataclass(frozen=True)
class Needle:
    """`key` is asked about ({s} in `asked`), `value` is found."""

    language: str
    key: str
    value: str
    line: str
    asked: Asked
    answer: str


_HEADS = {
    "en": (
        "Read this text.\n\n{x}\n\n{q}",
        "Here is a document:\n{x}\n\nQuestion: {q}",
        "<document>\n{x}\n</document>\n\n{q}",
        "{q} You find it in this text:\n\n{x}",
        "Text:\n{x}\n\nAnswer from the text: {q}",
    ),
    "zh": ("阅读下面的文字。\n\n{x}\n\n{q}", "文档：\n{x}\n\n问题：{q}", "{q}\n\n{x}"),
}


def approximate_tokens(text: str) -> float:
    return len(text) / CHARS_PER_TOKEN


def retrieval(
    rng: random.Random,
    split: Split,
    num_tokens: int = 0,
    *,
    num_needles: int = 0,
    depth: float | None = None,
    measure: Measure = approximate_tokens,
) -> Sample:
    """A text of about `num_tokens` (0: 60 to 400) and questions about its needles.

    With one needle, `depth` 0 puts it first, 1 last, None anywhere. `measure` counts tokens.
    """
    num_tokens = num_tokens or rng.randint(60, 400)
    count = num_needles or (rng.randint(1, 5) if num_tokens < 600 else rng.randint(5, 16))
    language = rng.choices(("en", "zh"), weights=(4, 1))[0]
    needles = _draw_needles(rng, split, language, count)
    text = _bury(rng, needles, num_tokens - TURN_TOKENS * (count - 1), depth, measure)
    rng.shuffle(needles)
    turns: list[Turn] = []
    for number, needle in enumerate(needles):
        question = worded(rng, *needle.asked, split, language).replace("{s}", needle.key)
        question = question[0].upper() + question[1:]
        if number == 0:
            head = rng.choice(_HEADS[language])
            question = head.replace("{q}", question).replace("{x}", text)
        thought = ("文中写着：" if language == "zh" else "The text says: ") + needle.line
        turns.append(User(question))
        turns.append(Assistant(needle.answer, thought if number == count - 1 else ""))
    return Sample("retrieval", tuple(turns), answer=needles[-1].value)


def _bury(
    rng: random.Random,
    needles: list[Needle],
    num_tokens: int,
    depth: float | None,
    measure: Measure,
) -> str:
    lines: list[str] = []
    size = sum(measure(needle.line) for needle in needles)
    while size < num_tokens:
        line = filler_line(rng)
        lines.append(line)
        size += measure(line) + 1
    for needle in needles:
        place = rng.random() if depth is None else depth
        lines.insert(round(place * len(lines)), needle.line)
    return rng.choice(("\n", "\n", " ", "\n\n")).join(lines)


def _draw_needles(rng: random.Random, split: Split, language: str, count: int) -> list[Needle]:
    """Needles whose keys differ."""
    needles: dict[str, Needle] = {}
    make = _needle_zh if language == "zh" else _needle
    while len(needles) < count:
        needle = draw(lambda: make(rng), lambda n: f"{n.key}:{n.value}", split)
        needles.setdefault(needle.key, needle)
    return list(needles.values())


def _value(rng: random.Random) -> str:
    known, odd = rng.choice(WORDS), rng.choice((made_up, wide_word))(rng)
    return rng.choice((digits(rng, rng.randint(2, 6)), odd, known))


def _needle(rng: random.Random) -> Needle:
    kind = rng.choice(("code", "home", "secret", "colour"))
    if kind == "code":
        key, value = f"the {rng.choice(COLOURS)} {rng.choice(OBJECTS)}", _value(rng)
        line = f"The code of {key} is {value}."
    elif kind == "home":
        key, value = rng.choice(NAMES), rng.choice(cities("en"))
        line = f"{key} lives in {value}."
    elif kind == "secret":
        key, value = made_up(rng), _value(rng)
        line = f"The secret word of {key} is {value}."
    else:
        key, value = f"{rng.choice(NAMES)}'s {rng.choice(OBJECTS)}", rng.choice(COLOURS)
        line = f"The colour of {key} is {value}."
    return Needle("en", key, value, line, _ASKED[kind], line)


def _needle_zh(rng: random.Random) -> Needle:
    if rng.random() < 0.6:
        key = f"{rng.choice(COLOURS_ZH)}色{rng.choice(OBJECTS_ZH)}"
        value = digits(rng, rng.randint(2, 6))
        line = f"{key}的密码是{value}。"
        return Needle("zh", key, value, line, _ASKED["密码"], line)
    key, value = rng.choice(NAMES_ZH), rng.choice(cities("zh"))
    line = f"{key}的老家在{value}。"
    return Needle("zh", key, value, line, _ASKED["老家"], line)


def _asked(
    language: str, ask: str, word: str, train: tuple[str, ...], held_out: tuple[str, ...]
) -> Asked:
    return (*train, *frames(ask, word, "{s}", language, held_out)), held_out


_ASKED: Mapping[str, Asked] = {
    "code": _asked(
        "en",
        "the code of {s}",
        "code",
        ("What is the code of {s}?", "Which code does {s} have?", "Find the code of {s}."),
        ("To open {s} I have to type a code. Which?", "What code belongs to {s}?"),
    ),
    "home": _asked(
        "en",
        "the home of {s}",
        "city",
        (
            "Where does {s} live?",
            "In which city does {s} live?",
            "Where do I find {s}?",
            "I want to visit {s}. Where do I go?",
            "Where is {s} at home?",
        ),
        ("Which city is {s}'s home?", "What is the city where {s} lives?"),
    ),
    "secret": _asked(
        "en",
        "the secret word of {s}",
        "secret word",
        ("What is the secret word of {s}?", "Which secret word does {s} have?"),
        ("By which secret word is {s} known?",),
    ),
    "colour": _asked(
        "en",
        "the colour of {s}",
        "colour",
        (
            "What is the colour of {s}?",
            "Which colour does {s} have?",
            "I have to paint {s}. In which colour?",
            "How does {s} look?",
        ),
        ("What colour is {s}?",),
    ),
    "密码": _asked(
        "zh",
        "{s}的密码",
        "密码",
        ("{s}的密码是什么？", "{s}的密码是多少？"),
        ("请找出{s}的密码。",),
    ),
    "老家": _asked(
        "zh",
        "{s}的老家",
        "城市",
        ("{s}的老家在哪里？", "{s}是哪里人？"),
        ("{s}的老家是哪座城市？",),
    ),
}


_REPEAT = (
    "Repeat this exactly: {x}",
    "Copy the following text:\n{x}",
    "Say this again, word for word: {x}",
    "Write exactly this:\n\n{x}",
    "Echo: {x}",
    "Repeat after me: {x}",
    "Give this text back to me:\n{x}",
    "Reproduce the following, letter by letter: {x}",
    "Output the text below as it is.\n{x}",
    "Say: {x}",
    "Quote this: {x}",
    "Once more: {x}",
    "Print the following text.\n\n{x}",
    "{x}\n\nRepeat the text above.",
    "I want to hear this again: {x}",
    "Do not change anything in this text, only write it again:\n{x}",
)
_REPEAT_HELD_OUT = ("Please repeat: {x}", "Return this text unchanged:\n{x}")
_REPEAT_ZH = (
    "请重复：{x}",
    "原样复述：{x}",
    "再说一遍：{x}",
    "照抄：{x}",
    "跟我说：{x}",
    "把这段话再写一次：{x}",
)
_REPEAT_ZH_HELD_OUT = ("请一字不差地重复：{x}",)


def copying(rng: random.Random, split: Split, num_words: int = 0) -> Sample:
    """Saying a text again, or one line of a list."""
    if rng.random() < 0.3:
        return _nth_line(rng, split)
    if rng.random() < 0.2:
        text = draw(
            lambda: "".join(rng.choices(_zh_characters(), k=rng.randint(3, 20))), str, split
        )
        request = worded(rng, _REPEAT_ZH, _REPEAT_ZH_HELD_OUT, split, "zh")
        thought = "我原样重复这段文字。"
    else:
        count = num_words or rng.randint(2, 30)
        text = draw(lambda: " ".join(_word(rng) for _ in range(count)), str, split)
        request = worded(rng, _REPEAT, _REPEAT_HELD_OUT, split)
        thought = "I repeat the text as it is."
    turns = (User(request.replace("{x}", text)), Assistant(text, thought))
    return Sample("copying", turns, answer=text)


def _word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return wide_word(rng)
    if kind < 0.4:
        return rng.choice(WORDS)
    if kind < 0.6:
        return made_up(rng, rng.randint(1, 3))
    if kind < 0.8:
        return digits(rng, rng.randint(1, 5))
    return rng.choice((*NAMES, *COLOURS, *OBJECTS))


def _zh_characters() -> str:
    return "".join(cities("zh"))


_NTH_HELD_OUT = ("Read out the {p} entry here.", "Which entry stands {p} here?")
_NTH = (
    "What is the {p} word of this list?",
    "Give me the {p} line.",
    "Which line comes {p}?",
    *frames("the {p} line", "line", "number {p}", "en", _NTH_HELD_OUT),
    *frames("the {p} word", "word", "place {p}", "en", _NTH_HELD_OUT),
)
_PLACES = ("first", "second", "third", "fourth", "fifth", "last")


def _nth_line(rng: random.Random, split: Split) -> Sample:
    lines = draw(lambda: [_word(rng) for _ in range(rng.randint(5, 8))], " ".join, split)
    place = rng.randrange(len(_PLACES))
    line = lines[-1] if place == len(_PLACES) - 1 else lines[place]
    asked = worded(rng, _NTH, _NTH_HELD_OUT, split)
    text = asked.replace("{p}", _PLACES[place]) + "\n" + "\n".join(lines)
    thought = f"The {_PLACES[place]} line is {line}."
    return Sample("copying", (User(text), Assistant(line, thought)), answer=line)
