"""Facts and sums as multiple choice with up to ten options, in the shape of MMLU-Pro; and several
questions over one list of options, which teach the way from an answer to its letter."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.conversations.arithmetic import Sum, draw_sum
from training.conversations.drills import LETTERS
from training.conversations.fact_choice import Drawn, draw_fact, draw_language
from training.conversations.free_questions import question
from training.conversations.phrasing import BARE
from training.conversations.sample import Sample, exchange
from training.facts import fill
from training.split import Split

SUM_SHARE = 0.03
BARE_SHARE = 0.12  # of the questions: only the options say what is asked for
FEW_SHOT_SHARE = 0.06
SHARED_SHARE = 0.4  # of the documents: several questions over one list

CATEGORY_NAMES = {
    "math": "数学",
    "physics": "物理",
    "chemistry": "化学",
    "law": "法律",
    "engineering": "工程",
    "other": "其他",
    "economics": "经济",
    "health": "健康",
    "psychology": "心理学",
    "business": "商业",
    "biology": "生物",
    "philosophy": "哲学",
    "computer science": "计算机科学",
    "history": "历史",
}
REFERENCE_HEAD = (
    "The following are multiple choice questions (with answers) about {category}. Think step by "
    'step and then output the answer in the format of "The answer is (X)" at the end.'
)
REFERENCE_BODY = "Question: {question}\nOptions:\n{options}\nAnswer: Let's think step by step."
_SHARED_FRAMES = {
    "en": (
        "Options:\n{options}\n\nChoose an option for each question:\n{questions}",
        "{questions}\n\nAnswer each with one of these options:\n{options}",
    ),
    "zh": ("选项：\n{options}\n\n请为每个问题选出答案：\n{questions}",),
}
_FRAMES = {
    "en": (
        REFERENCE_HEAD + "\n\n" + REFERENCE_BODY,
        "Question: {question}\nOptions:\n{options}\nWhich option is right?",
        "{question}\n{options}\nChoose one option.",
        "A question about {category}: {question}\n\n{options}\n\nGive the letter of the answer.",
    ),
    "zh": (
        "下面是关于{category}的选择题。\n问题：{question}\n选项：\n{options}\n请选出正确答案。",
        "{question}\n{options}\n请选择一项。",
    ),
}


@dataclass(frozen=True)
class Choice:
    """A question with its options; `thought` is what the model should think before the letter."""

    category: str
    language: str
    question: str
    options: tuple[str, ...]
    letter: str
    thought: str

    @property
    def listed(self) -> str:
        return "\n".join(f"{a}. {o}" for a, o in zip(LETTERS, self.options, strict=False))

    @property
    def verdict(self) -> str:
        if self.language == "zh":
            return f"答案是({self.letter})。"
        return f"The answer is ({self.letter})."

    @property
    def reasoning(self) -> str:
        return f"{self.thought}{self.placed}"

    @property
    def placed(self) -> str:
        """The answer, then its letter: what was said last is what is looked for in the list."""
        answer = self.options[LETTERS.index(self.letter)]
        if self.language == "zh":
            return f"所以：{answer} ({self.letter})。"
        return f" So: {answer} ({self.letter})."


def multiple_choice(rng: random.Random, split: Split) -> Sample:
    """A question in one of the frames, sometimes behind worked examples; or several questions."""
    if rng.random() < SHARED_SHARE:
        return shared_options(rng, split)
    if rng.random() < SUM_SHARE:
        choice = sum_choice(rng, split)
    else:
        language = draw_language(rng)
        choice = fact_choice(rng, split, draw_fact(rng, language, as_choice=True), language)
    if choice.language == "en" and rng.random() < FEW_SHOT_SHARE:
        return as_sample(choice, _few_shot(rng, choice))
    return as_sample(choice, rng.choice(_FRAMES[choice.language]))


def shared_options(rng: random.Random, split: Split) -> Sample:
    """Several questions of one relation over one list."""
    language = draw_language(rng)
    drawn = draw_fact(rng, language, as_choice=True)
    choice = fact_choice(rng, split, drawn, language)
    relation = drawn[0]
    listed = [f for f in relation.facts_in(language) if f.object[language] in choice.options]
    asked = {fact.subject[language]: fact for fact in rng.sample(listed, len(listed))}
    questions, answers = [], []
    for number, fact in enumerate(list(asked.values())[: rng.randint(2, 6)], 1):
        right = relation.objects_of(fact.subject[language], language)
        if len(right.intersection(choice.options)) > 1:
            continue
        one = Choice(
            choice.category,
            language,
            question(rng, split, (relation, fact), language),
            choice.options,
            LETTERS[choice.options.index(fact.object[language])],
            relation.statement(fact, language),
        )
        questions.append(f"{number}. {one.question}")
        answers.append(f"{number}. {one.reasoning}")
    frame = rng.choice(_SHARED_FRAMES[language])
    text = frame.replace("{options}", choice.listed).replace("{questions}", "\n".join(questions))
    thought = "I answer one by one." if language == "en" else "我逐一回答。"
    return exchange("multiple_choice", text, thought, "\n".join(answers), category=choice.category)


def as_sample(choice: Choice, frame: str = "") -> Sample:
    """In the language's reference frame unless another is given."""
    frame = frame or _FRAMES[choice.language][0]
    chinese = CATEGORY_NAMES[choice.category]
    category = chinese if choice.language == "zh" else choice.category
    text = frame.replace("{category}", category).replace("{question}", choice.question)
    return exchange(
        "multiple_choice",
        text.replace("{options}", choice.listed),
        choice.reasoning,
        choice.verdict,
        category=choice.category,
        answer=choice.letter,
    )


def fact_choice(
    rng: random.Random, split: Split, drawn: Drawn, language: str, num_options: int = 0
) -> Choice:
    """`num_options` 0: mostly ten, sometimes fewer, never more than the relation has answers."""
    relation, fact = drawn
    right = relation.objects_of(fact.subject[language], language)
    pool = sorted({other.object[language] for other in relation.facts_in(language)} - right)
    wanted = num_options or rng.choice((10, 10, 10, 9, 8, 6, 5, 4, 4, 3))
    options = rng.sample(pool, min(wanted - 1, len(pool)))
    options.insert(rng.randint(0, len(options)), fact.object[language])
    asked = question(rng, split, drawn, language)
    if split == "train" and rng.random() < BARE_SHARE:
        asked = fill(rng.choice(BARE[language]), fact, language)
    return Choice(
        relation.category,
        language,
        asked,
        tuple(options),
        LETTERS[options.index(fact.object[language])],
        relation.statement(fact, language),
    )


def sum_choice(rng: random.Random, split: Split) -> Choice:
    """An arithmetic problem; the other options are near the result."""
    problem: Sum = draw_sum(rng, split, max_digits=3)
    near = set(range(max(0, problem.result - 12), problem.result + 13)) - {problem.result}
    options = [str(n) for n in rng.sample(sorted(near), 9)]
    options.insert(rng.randint(0, len(options)), str(problem.result))
    letter = LETTERS[options.index(str(problem.result))]
    text = f"What is {problem.text}?"
    return Choice("math", "en", text, tuple(options), letter, problem.worked)


def _few_shot(rng: random.Random, choice: Choice) -> str:
    """The reference prompt with one to five worked examples of the category in front."""
    shots = []
    for _ in range(rng.randint(1, 5)):
        drawn = draw_fact(rng, "en", as_choice=True)
        example = fact_choice(rng, "train", drawn, "en", num_options=rng.choice((4, 10)))
        body = REFERENCE_BODY.replace("{question}", example.question)
        shots.append(
            f"{body.replace('{options}', example.listed)} {example.thought} {example.verdict}"
        )
    return "\n\n".join((REFERENCE_HEAD, *shots, REFERENCE_BODY))
