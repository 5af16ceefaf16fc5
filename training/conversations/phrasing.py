"""Many ways to ask the same: the words of a question must not decide what it is about.

With three phrasings a relation the miniature answered 97 % of the quiz's facts when they were asked
in a phrasing of training and 54 % when not (docs/log.md): it had learnt that "By what" asks for a
germ. The frames here are the same for all, clumsy as some become, so what is left to go by is the
subject and the thing asked for.

`{ask}` is what is asked for ("the capital of {s}"), `{word}` what kind of thing it is ("city"),
`{s}` the subject.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from training.split import Split

FRAMES = {
    "en": (
        "What is {ask}?",
        "Name {ask}.",
        "{ask}?",
        "{ask}, please.",
        "Give me {ask}.",
        "Tell me {ask}.",
        "I want to know {ask}.",
        "Do you know {ask}?",
        "Can you tell me {ask}?",
        "I am looking for {ask}.",
        "{ask} is what?",
        "{ask} is which {word}?",
        "Which {word} is {ask}?",
        "What {word} is {ask}?",
        "Find {ask}.",
        "State {ask}.",
        "Say {ask}.",
        "I forgot {ask}. What was it?",
        "{s}: which {word}?",
        "{s}: what {word} is it?",
        "{s} - {word}?",
        "{s}. Give the {word}.",
        "For {s}, which {word} is right?",
        "In the case of {s}, which {word} would you give?",
        "About {s}: what is {ask}?",
        "On {s}: by which {word} do you answer?",
        "Take {s}. Which {word} goes with it?",
        "Which {word} goes with {s}?",
        "What {word} do you connect with {s}?",
        "Think of {s}. Now name the {word}.",
        "With {s} in mind, give the {word}.",
        "By rule, {ask} is which {word}?",
        "How would you answer this: {ask}?",
        "Someone asks for {ask}. What do you say?",
        "My question is {ask}.",
        "People ask me for {ask}. Which {word} do I say?",
        "Someone mentions {s}. Which {word} comes to mind?",
        "When you hear {s}, which {word} do you think of?",
        "Where {s} is concerned, which {word} is meant?",
        "To name {ask}, which {word} would you use?",
        "Who knows {ask}?",
        "Is there a {word} for {s}? Which?",
    ),
    "zh": (
        "{ask}是什么？",
        "请说出{ask}。",
        "{ask}？",
        "我想知道{ask}。",
        "说说{ask}。",
        "告诉我{ask}。",
        "你知道{ask}吗？",
        "{ask}是哪个？",
        "请问{ask}是？",
        "{s}：{word}是什么？",
        "{s}，哪个{word}？",
        "关于{s}：哪个{word}是对的？",
        "哪个{word}与{s}对应？",
        "{s}对应哪个{word}？",
        "就{s}来说，{word}是什么？",
        "提到{s}，你想到哪个{word}？",
        "查一下{ask}。",
        "我忘了{ask}，是什么？",
        "有人问{ask}，该怎么回答？",
        "要说出{ask}，用哪个{word}？",
    ),
}
# Fit for a question whose options tell what is asked for.
BARE = {
    "en": (
        "{s}",
        "{s}?",
        "Which option fits {s}?",
        "Which of these goes with {s}?",
        "What belongs together with {s}?",
        "{s}: choose.",
        "Find the match for {s}.",
        "By what is {s} matched?",
        "In this list, what fits {s}?",
        "To what does {s} lead here?",
    ),
    "zh": ("{s}", "{s}？", "哪一项与{s}对应？", "{s}对应哪一项？", "请为{s}选一项。"),
}
_BEFORE = {
    "en": (
        "Please: ",
        "Hey, ",
        "Now: ",
        "Next: ",
        "One more: ",
        "For my homework: ",
        "I wonder: ",
        "Help me with this. ",
        "Could you help? ",
        "Hi! ",
        "Good day. ",
        "Let me ask you something. ",
        "For a friend: ",
        "By the way: ",
        "OK, ",
        "In short: ",
    ),
    "zh": (
        "麻烦你：",
        "请帮忙。",
        "下一个：",
        "我想问：",
        "嗨，",
        "好的，",
        "顺便问一下：",
        "对了，",
    ),
}
_AFTER = {
    "en": (" Thanks.", " Thank you!", " Please.", " Be quick.", " I need it today.", " Go on."),
    "zh": ("谢谢。", "谢谢！", "麻烦了。", "快一点。"),
}
# Words of questions and requests that can stand for each other, however clumsy the result.
_ALIKE = (
    ("what", "which"),
    ("what is", "what's"),
    ("tell me", "give me", "show me", "say", "let me know"),
    ("name", "state", "give", "list"),
    ("find", "get", "look up", "search", "fetch"),
    ("does", "would", "will"),
    ("called", "termed", "named"),
    ("write", "put down", "type"),
    ("make", "create", "produce", "build"),
    ("please", "kindly", "now"),
    ("return", "give back", "output"),
    ("who", "which person", "what person"),
    ("where", "in what place", "at which place"),
    ("when", "at what time"),
    ("how many", "what number of"),
    ("how much", "what amount"),
    ("use", "take", "apply"),
    ("i need", "i want", "i would like", "please get me"),
    ("repeat", "say again", "echo"),
    ("calculate", "compute", "solve"),
    ("open", "show", "display"),
)
_SUBSTITUTES = {
    word: tuple(other for other in group if other != word) for group in _ALIKE for word in group
}
_WORD = r"\w+"
# Not where the word is a thing's: "the name", "from now".
_THINGS = "(?<!the )(?<!this )(?<!a )(?<!which )(?<!what )(?<!whose )(?<!from )"
_ALIKE_PATTERN = re.compile(
    rf"{_THINGS}\b({'|'.join(sorted(_SUBSTITUTES, key=len, reverse=True))})\b", re.IGNORECASE
)
_DROPPABLE = re.compile(r"(?<= )(the|a|of|in|to|is|does|do|for|please) (?!\{)", re.IGNORECASE)
REWORDED_SHARE = 0.35


def frames(ask: str, word: str, subject: str, language: str, held_out: Sequence[str]) -> list[str]:
    """Every frame filled, without those that hold a phrasing that is kept back."""
    filled = (
        _capital(frame.replace("{ask}", ask).replace("{word}", word).replace("{s}", subject))
        for frame in FRAMES[language]
    )
    return [text for text in filled if not meets(text, held_out)]


def reword(rng: random.Random, template: str, language: str, held_out: Sequence[str] = ()) -> str:
    """The template said a little differently, one time in four; {slots} stay as they are.

    It never holds one of the phrasings that are kept back.
    """
    if language not in FRAMES or rng.random() >= REWORDED_SHARE:
        return template
    text = _other_words(rng, template) if language == "en" else template
    if rng.random() < 0.15:
        text = text.rstrip(".?。？")
    if rng.random() < 0.3 and not text.startswith("{x}\n"):  # which is a text to say again
        text = rng.choice(_BEFORE[language]) + text
    if rng.random() < 0.15 and text[-1] in ".?!。？！":
        text += rng.choice(_AFTER[language])
    return template if meets(text, held_out) else text


def meets(text: str, held_out: Sequence[str]) -> bool:
    """Whether a phrasing that is kept back is in the text, whatever its capitals and marks."""
    return any(_plain(kept_back) in _plain(text) for kept_back in held_out)


def _other_words(rng: random.Random, text: str) -> str:
    if rng.random() < 0.5:
        text = _ALIKE_PATTERN.sub(lambda found: _other(rng, found.group()), text, count=2)
    if rng.random() < 0.25:
        text = _DROPPABLE.sub("", text, count=1)
    if rng.random() < 0.15 and not text.startswith("{"):
        text = text[0].lower() + text[1:]
    return text


def _plain(text: str) -> str:
    """Its words alone, between blanks."""
    return f" {' '.join(re.findall(_WORD, text.casefold()))} "


def worded(
    rng: random.Random,
    train: Sequence[str],
    held_out: Sequence[str],
    split: Split,
    language: str = "en",
) -> str:
    """A template of the split; those of training are reworded now and then."""
    if split != "train":
        return rng.choice(held_out)
    return reword(rng, rng.choice(train), language, held_out)


def _other(rng: random.Random, word: str) -> str:
    other = rng.choice(_SUBSTITUTES[word.lower()])
    return _capital(other) if word[0].isupper() else other


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
