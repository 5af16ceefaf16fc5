"""Facts asked freely: alone, several in one conversation, as a list, one question for a row of
things, true or false, told at length.

Thinking is always the relation's one statement, so every phrasing leads to the same place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from m2serve.chat.messages import Assistant, Turn, User
from training.conversations.fact_choice import Drawn, draw_fact, draw_language
from training.conversations.phrasing import reword
from training.conversations.sample import Sample, exchange
from training.facts import Fact, Relation, fill, load_relations
from training.split import Split, draw

FRAMED_SHARE = 0.55
_OPENINGS = {
    "en": (
        "",
        "",
        "",
        "",
        "Please tell me: ",
        "Hello! ",
        "I have a question. ",
        "Quick question: ",
    ),
    "zh": ("", "", "", "", "请问：", "你好！", "我有个问题。", "请告诉我："),
}
_BRIEF = {
    "en": (" Answer briefly.", " Just the answer, please.", " Reply with the answer only."),
    "zh": ("请简短回答。", "只说答案。", "只回答答案即可。"),
}
_LIST = {
    "en": ("Answer these questions:", "Please answer:", "I need to know:"),
    "zh": ("请回答下列问题：", "请回答：", "我想知道："),
}
_SAME = {
    "en": (" And the same for: {x}.", " Then tell me for {x}, too.", " Say it also of: {x}."),
    "zh": ("还有：{x}。", "另外，{x}呢？"),
}
_TRUE_OR_FALSE = {
    "en": ("True or false: {x}", "Is this right? {x}", "Is the following true? {x}"),
    "zh": ("判断对错：{x}", "这句话对吗？{x}", "下面的说法对吗？{x}"),
}
_ABOUT = {
    "en": ("Tell me about {s}.", "What do you know about {s}?", "Describe {s}."),
    "zh": ("请介绍{s}。", "你知道{s}的什么？", "说说{s}。"),
}


def free_question(rng: random.Random, split: Split) -> Sample:
    """One fact or several, in one of six forms."""
    language = draw_language(rng)
    form = rng.choices(
        (_single, _several, _listed, _same_for, _true_or_false, _about),
        weights=(11, 24, 24, 30, 5, 6),
    )[0]
    return form(rng, split, language)


def question(rng: random.Random, split: Split, drawn: Drawn, language: str) -> str:
    """In a phrasing of the relation; in training half of the time in one of the frames."""
    relation, fact = drawn
    phrasing = relation.phrasing[language]
    if split != "train":
        return fill(rng.choice(phrasing.held_out), fact, language)
    template = rng.choice(phrasing.framed if rng.random() < FRAMED_SHARE else phrasing.train)
    return fill(reword(rng, template, language, phrasing.held_out), fact, language)


def _single(rng: random.Random, split: Split, language: str) -> Sample:
    relation, fact = drawn = draw_fact(rng, language)
    statement = relation.statement(fact, language)
    text = rng.choice(_OPENINGS[language]) + question(rng, split, drawn, language)
    content = statement
    if relation.as_choice and rng.random() < 0.3:
        text += rng.choice(_BRIEF[language])
        content = _short(fact.object[language], language)
    return exchange(
        "free_question",
        text,
        statement,
        content,
        category=relation.category,
        answer=fact.object[language],
    )


def _short(answer: str, language: str) -> str:
    return answer + "。" if language == "zh" else answer[0].upper() + answer[1:] + "."


def _several(rng: random.Random, split: Split, language: str) -> Sample:
    """Only the last answer is thought about: older reasoning is not rendered."""
    turns: list[Turn] = []
    count = rng.randint(2, 6)
    for number in range(count):
        relation, fact = drawn = draw_fact(rng, language)
        statement = relation.statement(fact, language)
        turns.append(User(question(rng, split, drawn, language)))
        turns.append(Assistant(statement, statement if number == count - 1 else ""))
    return Sample(
        "free_question",
        tuple(turns),
        category=relation.category,
        answer=fact.object[language],
    )


def _listed(rng: random.Random, split: Split, language: str) -> Sample:
    drawn = [draw_fact(rng, language) for _ in range(rng.randint(2, 8))]
    numbered = [f"{n}. {question(rng, split, d, language)}" for n, d in enumerate(drawn, 1)]
    answers = [f"{n}. {r.statement(f, language)}" for n, (r, f) in enumerate(drawn, 1)]
    thought = "I answer one by one." if language == "en" else "我逐一回答。"
    text = "\n".join((rng.choice(_LIST[language]), *numbered))
    return exchange("free_question", text, thought, "\n".join(answers))


def _same_for(rng: random.Random, split: Split, language: str) -> Sample:
    """One question about many things: the most facts for the tokens they take."""
    drawn = relation, first = draw_fact(rng, language)
    others = {fact.subject[language]: fact for fact in relation.facts_in(language)}
    others.pop(first.subject[language], None)
    count = min(len(others), rng.randint(3, 14))
    if not count or "{s}" not in _statement(relation, language):
        return _single(rng, split, language)
    facts = [others[subject] for subject in rng.sample(sorted(others), count)]
    joint = ", " if language == "en" else "、"
    row = joint.join(fact.subject[language] for fact in facts)
    text = question(rng, split, drawn, language) + rng.choice(_SAME[language]).replace("{x}", row)
    told = [relation.statement(fact, language) for fact in (first, *facts)]
    thought = "I take them in turn." if language == "en" else "我依次回答。"
    return exchange("free_question", text, thought, "\n".join(told))


def _true_or_false(rng: random.Random, split: Split, language: str) -> Sample:
    def make() -> tuple[Relation, Fact, str, bool]:
        relation, fact = draw_fact(rng, language, as_choice=True)
        right = fact.object[language]
        is_true = rng.random() < 0.5
        claimed = (
            right if is_true else wrong_object(rng, relation, fact.subject[language], language)
        )
        return relation, fact, claimed, is_true

    relation, fact, claimed, is_true = draw(
        make, lambda drawn: f"claim:{drawn[1].subject[language]}:{drawn[2]}", split
    )
    template = relation.phrasing[language].statement
    claim = template.replace("{s}", fact.subject[language]).replace("{o}", claimed)
    if "{s}" not in template:  # such a statement does not say what it is about
        claim = f"{fact.subject[language]}: {claimed}"
    statement = relation.statement(fact, language)
    words = ("Yes.", "No.") if language == "en" else ("对。", "不对。")
    verdict = words[0] if is_true else f"{words[1]} {statement}"
    text = rng.choice(_TRUE_OR_FALSE[language]).replace("{x}", claim[0].upper() + claim[1:])
    return exchange(
        "free_question",
        text,
        statement,
        verdict,
        category=relation.category,
        answer=words[not is_true],
    )


def wrong_object(rng: random.Random, relation: Relation, subject: str, language: str) -> str:
    """An answer to the same kind of question that is not right for this subject."""
    right = relation.objects_of(subject, language)
    others = {fact.object[language] for fact in relation.facts_in(language)} - right
    return rng.choice(sorted(others))


@cache
def _described(language: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Subjects of several relations, each with the statements about it."""
    statements: dict[str, list[str]] = {}
    for relation in load_relations():
        for fact in relation.facts_in(language) if "{s}" in _statement(relation, language) else ():
            told = statements.setdefault(fact.subject[language], [])
            told.append(relation.statement(fact, language))
    return tuple((s, tuple(told)) for s, told in statements.items() if len(told) > 1)


def _statement(relation: Relation, language: str) -> str:
    return relation.phrasing[language].statement if language in relation.phrasing else ""


def _about(rng: random.Random, split: Split, language: str) -> Sample:
    subject, statements = rng.choice(_described(language))
    text = rng.choice(_ABOUT[language]).replace("{s}", subject)
    thought = f"I say what I know about {subject}." if language == "en" else f"我说说{subject}。"
    joint = " " if language == "en" else ""
    return exchange("free_question", text, thought, joint.join(statements))


def statements(rng: random.Random, language: str) -> Iterator[str]:
    """Statements of the world without end, as filler for long texts."""
    while True:
        relation, fact = draw_fact(rng, language, as_choice=True)
        if "{s}" in relation.phrasing[language].statement:
            yield relation.statement(fact, language)
