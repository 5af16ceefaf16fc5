"""Sums with worked thinking, bare and in words, in English, Chinese and French."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.conversations.phrasing import worded
from training.conversations.sample import Sample, exchange
from training.split import Split, draw, split_of

SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_BARE = {
    "en": (
        "What is {x}?",
        "Calculate {x}.",
        "{x} = ?",
        "How much is {x}?",
        "Compute {x}, please.",
        "{x}",
        "{x} =",
        "Solve {x}.",
        "Find {x}.",
        "I need {x}.",
        "Result of {x}?",
        "Can you do {x}?",
        "What does {x} make?",
        "Give me the value of {x}.",
        "Do the sum {x} for me.",
        "Evaluate {x} step by step.",
        "How would you solve {x}?",
        "{x}: what comes out?",
        "By hand, {x} is how much?",
        "My homework is {x}.",
        "Show how {x} is done.",
    ),
    "zh": (
        "{x}等于多少？",
        "计算{x}。",
        "{x}=？",
        "请算一下{x}。",
        "{x}",
        "{x}是多少？",
        "求{x}。",
        "帮我算{x}。",
        "{x}得多少？",
        "我想知道{x}。",
    ),
    "fr": (
        "Combien font {x} ?",
        "Calcule {x}.",
        "Quel est le résultat de {x} ?",
        "{x} ?",
        "Que donne {x} ?",
        "Fais le calcul {x}.",
        "Je cherche {x}.",
        "Peux-tu calculer {x} ?",
    ),
}
_BARE_HELD_OUT = {
    "en": ("Please work out {x}.", "Tell me what {x} gives."),
    "zh": ("{x}的结果是什么？",),
    "fr": ("Combien vaut {x} ?",),
}
_DRILL = {
    "en": ("Calculate: {x}.", "Work these out: {x}", "What are {x}?"),
    "zh": ("计算：{x}。", "请算出：{x}"),
    "fr": ("Calcule : {x}.",),
}
_ONE_BY_ONE = {
    "en": "I work them out one by one.",
    "zh": "我逐一计算。",
    "fr": "Je calcule un par un.",
}
DRILL_SHARE = 0.35
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Tom", "Lily", "Max", "Nora", "Paul", "Rosa")
_NAMES_ZH = ("小明", "小红", "小李", "小王", "小张", "小刚")
_THINGS = ("apples", "books", "coins", "stamps", "cards", "pens", "eggs", "stones", "tickets")
_THINGS_ZH = ("苹果", "书", "硬币", "邮票", "卡片", "铅笔", "鸡蛋")
_STORIES = {
    "add": (
        "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
        "There are {a} {t} in one box and {b} in another. How many {t} are there in all?",
    ),
    "subtract": (
        "{n} has {a} {t} and gives away {b}. How many {t} are left?",
        "A shop has {a} {t} and sells {b} of them. How many {t} remain?",
    ),
    "multiply": (
        "{n} has {a} boxes with {b} {t} each. How many {t} are there?",
        "One bag holds {b} {t}. How many {t} do {a} bags hold?",
    ),
    "divide": (
        "{n} shares {a} {t} equally among {b} friends. How many {t} does each get?",
        "{a} {t} are packed into {b} equal boxes. How many {t} are in each box?",
    ),
}
_STORIES_ZH = {
    "add": ("{n}有{a}个{t}，又得到{b}个。现在有多少个{t}？",),
    "subtract": ("{n}有{a}个{t}，送出{b}个。还剩多少个{t}？",),
    "multiply": ("{n}有{a}个盒子，每盒{b}个{t}。一共有多少个{t}？",),
    "divide": ("{n}把{a}个{t}平均分给{b}个朋友。每人得到多少个？",),
}


@dataclass(frozen=True)
class Sum:
    """`a` SIGN `b`; subtraction stays positive, division is exact."""

    operation: str
    a: int
    b: int

    @property
    def text(self) -> str:
        return f"{self.a} {SIGNS[self.operation]} {self.b}"

    @property
    def result(self) -> int:
        a, b = self.a, self.b
        results = {"add": a + b, "subtract": a - b, "multiply": a * b, "divide": a // b}
        return results[self.operation]

    @property
    def worked(self) -> str:
        """Digit by digit from the right, or by place for a product; digits and signs only."""
        if self.operation == "add":
            steps = _add_steps(self.a, self.b)
        elif self.operation == "subtract":
            steps = _subtract_steps(self.a, self.b)
        elif self.operation == "multiply":
            steps = _multiply_steps(self.a, self.b)
        else:
            steps = [f"{self.b} * {self.result} = {self.a}"]
        return "; ".join([*steps, f"{self.text} = {self.result}."])


def arithmetic(rng: random.Random, split: Split) -> Sample:
    """A bare sum, a short story that asks for one, or many small sums."""
    language = rng.choices(("en", "zh", "fr"), weights=(70, 20, 10))[0]
    if split == "train" and rng.random() < DRILL_SHARE:
        return _drill(rng, language)
    problem = draw_sum(rng, split)
    if language != "fr" and rng.random() < 0.3:
        text = _story(rng, problem, language)
    else:
        frame = worded(rng, _BARE[language], _BARE_HELD_OUT[language], split, language)
        text = frame.replace("{x}", problem.text)
    end = "。" if language == "zh" else "."
    content = f"{problem.text} = {problem.result}{end}"
    return exchange("arithmetic", text, problem.worked, content, answer=str(problem.result))


def _drill(rng: random.Random, language: str) -> Sample:
    """The steps that worked sums are made of: two digits, with a carry or a loan or without."""
    steps = [_step(rng) for _ in range(rng.randint(4, 14))]
    asked = ", ".join(step.rpartition(" = ")[0] for step in steps)
    text = rng.choice(_DRILL[language]).replace("{x}", asked)
    return exchange("arithmetic", text, _ONE_BY_ONE[language], "; ".join(steps) + ".")


def _step(rng: random.Random) -> str:
    """One line of `_add_steps`, `_subtract_steps` or `_multiply_steps`."""
    x, y, carry = rng.randint(0, 9), rng.randint(0, 9), rng.random() < 0.4
    kind = rng.choices(("+", "-", "*"), weights=(4, 4, 3))[0]
    if kind == "+":
        return f"{x} + {y} + 1 = {x + y + 1}" if carry else f"{x} + {y} = {x + y}"
    if kind == "-":
        shown = x + 10 if x - carry < y else x
        return f"{shown} - {y} - 1 = {shown - y - 1}" if carry else f"{shown} - {y} = {shown - y}"
    a, b = rng.choice((1, 1, 10, 100)) * rng.randint(2, 9), rng.choice((1, 1, 10)) * max(2, y)
    return f"{a} * {b} = {a * b}"


def draw_sum(rng: random.Random, split: Split, max_digits: int = 4) -> Sum:
    """A problem whose two numbers belong to the split. Single steps (`_step`) are all drilled."""

    def make() -> Sum:
        operation = rng.choices(tuple(SIGNS), weights=(35, 30, 25, 10))[0]
        if operation == "multiply":
            a, b = rng.choice(((9, 9), (99, 9), (99, 9), (999, 9), (99, 99)))
            return Sum(operation, rng.randint(2, a), rng.randint(2, b))
        if operation == "divide":
            b, result = rng.randint(2, 12), rng.randint(2, 20)
            return Sum(operation, b * result, b)
        digits = rng.choices(range(1, max_digits + 1), weights=(2, 4, 4, 1)[:max_digits])[0]
        a, b = rng.randint(1, 10**digits - 1), rng.randint(1, 10**digits - 1)
        if operation == "subtract":
            a, b = max(a, b), min(a, b)
        return Sum(operation, a, b)

    while True:
        drawn = draw(make, _key, split)
        if split == "held_out" or not is_kept_back(drawn):
            return drawn


def _key(drawn: Sum) -> str:
    return f"{drawn.operation}:{drawn.a}:{drawn.b}"


def is_kept_back(drawn: Sum) -> bool:
    """Whether the quiz may ask it, in this order or, where that is the same sum, in the other."""
    is_same = drawn.operation in ("add", "multiply")
    other = Sum(drawn.operation, drawn.b, drawn.a) if is_same else drawn
    return "held_out" in (split_of(_key(drawn)), split_of(_key(other)))


def _story(rng: random.Random, problem: Sum, language: str) -> str:
    stories = _STORIES_ZH if language == "zh" else _STORIES
    text = rng.choice(stories[problem.operation])
    names, things = (_NAMES_ZH, _THINGS_ZH) if language == "zh" else (_NAMES, _THINGS)
    text = text.replace("{n}", rng.choice(names)).replace("{t}", rng.choice(things))
    return text.replace("{a}", str(problem.a)).replace("{b}", str(problem.b))


def _add_steps(a: int, b: int) -> list[str]:
    steps, carry = [], 0
    while a or b:
        x, y = a % 10, b % 10
        total = x + y + carry
        with_carry = f" + {carry}" if carry else ""
        steps.append(f"{x} + {y}{with_carry} = {total}")
        a, b, carry = a // 10, b // 10, total // 10
    return steps


def _subtract_steps(a: int, b: int) -> list[str]:
    """A digit that is too small borrows ten from the next; the loan is taken off there."""
    steps, borrow = [], 0
    while a:
        x, y = a % 10, b % 10
        minus = f" - {borrow}" if borrow else ""
        short = x - borrow < y
        shown = x + 10 if short else x
        steps.append(f"{shown} - {y}{minus} = {shown - y - borrow}")
        a, b, borrow = a // 10, b // 10, int(short)
    return steps


def _multiply_steps(a: int, b: int) -> list[str]:
    """Small times small is known by heart; a place value of the first factor at a time."""
    if a < 10 and b < 10:
        return []
    if b > 9:
        tens, ones = b // 10 * 10, b % 10
        parts = [(a, tens)] + ([(a, ones)] if ones else [])
    else:
        places = [int(d) * 10**i for i, d in enumerate(reversed(str(a)))]
        parts = [(place, b) for place in reversed(places) if place]
    steps = [f"{x} * {y} = {x * y}" for x, y in parts]
    total = parts[0][0] * parts[0][1]
    for x, y in parts[1:]:
        steps.append(f"{total} + {x * y} = {total + x * y}")
        total += x * y
    return steps
