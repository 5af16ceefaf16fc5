"""Many small tasks over one list: the skills that longer conversations are made of.

A skill such as finding the letter in front of an option appears within some hundred thousand tokens
when every answer of a document exercises it, and not within fifteen million when one token in a
hundred does. None of these lists is in the quiz.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from training.conversations.fact_choice import draw_fact, draw_language
from training.conversations.sample import Sample, exchange
from training.conversations.tool_drills import tool_drill
from training.conversations.words import (
    COLOURS,
    NAMES,
    OBJECTS,
    WORDS,
    digits,
    made_up,
    token_word,
    wide_word,
)

LETTERS = "ABCDEFGHIJ"
MAX_ASKED = 8
_LETTER_FRAMES = {
    "en": (
        "{x}\n\nGive the letter of each of these: {w}.",
        "Options:\n{x}\nWhich options are these? {w}",
        "Which letters have {w}?\n{x}",
    ),
    "zh": ("选项：\n{x}\n下列内容各是哪个选项？{w}",),
}
_VALUE_FRAMES = (
    "{x}\n\nWhat belongs to each of these: {w}?",
    "Look up {w} in this list:\n{x}",
    "{x}\nGive the entries of {w}.",
)
_COPY_FRAMES = (
    "Repeat all of this:\n{x}",
    "Copy these lines.\n{x}",
    "{x}\n\nSay these lines again.",
)


def drill(rng: random.Random, pieces: Sequence[str] = ()) -> Sample:
    """Letters of options, entries of keys, lines said again, or names out of tool definitions.

    With `pieces`, the texts of the vocabulary's tokens, every token is copied as often as others.
    """
    make: Callable[[random.Random, Sequence[str]], Sample] = rng.choices(
        (_letters, _values, _lines, tool_drill), weights=(3, 2, 4, 7)
    )[0]
    return make(rng, pieces)


def _letters(rng: random.Random, pieces: Sequence[str]) -> Sample:
    """The form in which multiple choice ends its thinking: the answer, then its letter."""
    language = draw_language(rng)
    relation, _ = draw_fact(rng, language, as_choice=True)
    pool = [fact.object[language] for fact in relation.facts_in(language)]
    if language == "en" and rng.random() < 0.7:
        pool = _things(rng, pieces)
    options = _some(rng, pool, rng.choice((2, 3, 4, 6, 8, 10, 10, 10)))
    wanted = rng.sample(options, min(len(options), MAX_ASKED))
    listed = "\n".join(f"{a}. {o}" for a, o in zip(LETTERS, options, strict=False))
    said = [f"{option} ({LETTERS[options.index(option)]})" for option in wanted]
    text = rng.choice(_LETTER_FRAMES[language]).replace("{x}", listed)
    if language == "zh":
        return _exchange(
            text.replace("{w}", "；".join(wanted)), "我逐一查找。", "；".join(said) + "。"
        )
    return _exchange(
        text.replace("{w}", "; ".join(wanted)), "I look them up.", "; ".join(said) + "."
    )


def _values(rng: random.Random, pieces: Sequence[str]) -> Sample:
    """Entries of a list of keys and values."""
    keys = _some(rng, _things(rng, pieces), rng.randint(2, 14))
    values = [rng.choice(_things(rng, pieces)) for _ in keys]
    sign = rng.choice((": ", " = ", " -> ", " is "))
    lines = [f"{key}{sign}{value}" for key, value in zip(keys, values, strict=True)]
    wanted = rng.sample(range(len(keys)), min(len(keys), MAX_ASKED))
    text = rng.choice(_VALUE_FRAMES).replace("{x}", "\n".join(lines))
    text = text.replace("{w}", ", ".join(keys[i] for i in wanted))
    return _exchange(text, "I look them up.", "\n".join(lines[i] for i in wanted))


def _lines(rng: random.Random, pieces: Sequence[str]) -> Sample:
    lines = [
        " ".join(rng.choice(_things(rng, pieces)) for _ in range(rng.randint(1, 6)))
        for _ in range(rng.randint(2, 9))
    ]
    text = "\n".join(lines)
    frame = rng.choice(_COPY_FRAMES)
    return _exchange(frame.replace("{x}", text), "I repeat the text as it is.", text)


def _things(rng: random.Random, pieces: Sequence[str]) -> list[str]:
    """Ten or more short texts of one kind, from plain words to names as tools have them."""
    if pieces and rng.random() < 0.5:
        joint, count = rng.choice("_ -,"), rng.randint(1, 3)
        return [joint.join(token_word(rng, pieces) for _ in range(count)) for _ in range(20)]
    kind = rng.randrange(10)
    if kind == 0:
        return [_number(rng) for _ in range(20)]
    if kind == 1:
        return [f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)}" for _ in range(20)]
    if kind == 2:
        return [*WORDS, *NAMES]
    if kind == 3:
        return [f"{rng.choice(WORDS)}_{rng.choice(OBJECTS)}_{rng.choice(WORDS)}" for _ in range(20)]
    if kind == 4:
        words = [rng.choice(WORDS) + rng.choice(OBJECTS).title() for _ in range(20)]
        return [word + rng.choice(("", rng.choice(NAMES))) for word in words]
    if kind == 5:
        return [made_up(rng, rng.randint(1, 3)) for _ in range(20)]
    joint, count = rng.choice("_ -"), rng.randint(1, 3)
    return [joint.join(wide_word(rng) for _ in range(count)) for _ in range(20)]


def _number(rng: random.Random) -> str:
    """Often of two digits only, such as 66110: the one before does not tell what comes next."""
    if rng.random() < 0.5:
        return digits(rng, rng.randint(1, 6))
    pair = rng.sample("0123456789", 2)
    return "".join(rng.choices(pair, k=rng.randint(3, 7)))


def _some(rng: random.Random, pool: Sequence[str], count: int) -> list[str]:
    unique = sorted(set(pool))
    return rng.sample(unique, min(len(unique), count))


def _exchange(text: str, thought: str, content: str) -> Sample:
    return exchange("drill", text, thought, content)
