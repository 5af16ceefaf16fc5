"""The quiz: its questions are fixed and unseen, its scorer is strict, its statistics are right."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from m2serve.chat.messages import normalize
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import parse_tools
from training.conversations.phrasing import BARE
from training.facts import CATEGORIES, fill, load_relations
from training.intervals import mcnemar, paired, wilson
from training.quiz_answers import prompt_of, read_answer
from training.quiz_items import Item, quiz_items
from training.quiz_report import comparison, report
from training.quiz_scoring import Answer, contains, fits_schema, grade


@pytest.fixture(scope="module")
def items(tokenizer: Tokenizer) -> list[Item]:
    return quiz_items(tokenizer)


def say(content: str, calls: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(content, "", calls, "stop", 9)


def test_the_questions_are_always_the_same(items: list[Item], tokenizer: Tokenizer) -> None:
    assert quiz_items(tokenizer) == items
    assert len({item.id for item in items}) == len(items) == 2694


def test_a_salt_draws_other_questions_of_the_same_kinds(
    items: list[Item], tokenizer: Tokenizer
) -> None:
    others = quiz_items(tokenizer, "other")
    assert Counter(item.set for item in others) == Counter(item.set for item in items)
    same = {item.fingerprint for item in items} & {item.fingerprint for item in others}
    assert len(same) < 0.1 * len(items)


def test_fourteen_categories_alike(items: list[Item]) -> None:
    counts = Counter(item.category for item in items if item.set == "knowledge")
    assert sum(counts.values()) >= 1200
    assert counts == dict.fromkeys(CATEGORIES, 90)


def test_no_phrasing_of_the_quiz_is_trained_on(items: list[Item]) -> None:
    trained = {
        fill(template, fact, language)
        for relation in load_relations()
        for language, phrasing in relation.phrasing.items()
        for fact in relation.facts_in(language)
        for template in (*phrasing.train, *phrasing.framed, *BARE[language])
    }
    for item in items:
        if item.set in ("knowledge", "knowledge_zh"):
            text = item.messages[-1]["content"]
            for mark in ("Question: ", "问题："):
                text = text.partition(mark)[2] or text
            assert text.splitlines()[0] not in trained


def test_needle_prompts_have_the_promised_length(items: list[Item], tokenizer: Tokenizer) -> None:
    for item in items:
        if item.set.startswith("needle"):
            wanted = 2000 if item.set == "needle_2000" else 4000
            assert wanted * 0.97 <= len(prompt_of(item, tokenizer, "x" * 40)) <= wanted + 30
            assert item.answer in item.messages[0]["content"]


def test_the_product_takes_every_question(items: list[Item]) -> None:
    for item in items:
        normalize(item.messages)
        parse_tools(item.tools or None)
        assert bool(item.answer) != bool(item.calls)


def test_the_expected_calls_fit_their_schemas(items: list[Item]) -> None:
    called = [item for item in items if item.calls]
    assert len(called) == 360
    for item in called:
        assert all(fits_schema(item, name, arguments) for name, arguments in item.calls)


def choice(answer: str = "C") -> Item:
    return Item("k:1", "knowledge", "law", [], [], answer, [])


@pytest.mark.parametrize(
    ("content", "is_right", "is_parsed"),
    [
        ("The answer is (C).", True, True),
        ("答案是(C)。", True, True),
        ("(B) looks right, but the answer is (C).", True, True),
        ("The answer is (D).", False, True),
        ("C", True, True),
        ("C is right", False, False),
        ("", False, False),
    ],
)
def test_a_choice_is_read_by_its_letter(content: str, is_right: bool, is_parsed: bool) -> None:
    row = grade(choice(), say(content))
    assert (row.is_right, row.is_parsed, row.schema_valid) == (is_right, is_parsed, None)


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "on": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize(
    ("name", "arguments", "is_valid"),
    [
        ("f", {"city": "Oslo"}, True),
        ("f", {"city": "Oslo", "unit": "C", "days": 3, "on": True, "tags": ["a"]}, True),
        ("g", {"city": "Oslo"}, False),
        ("f", {}, False),
        ("f", {"city": "Oslo", "unit": "K"}, False),
        ("f", {"city": 3}, False),
        ("f", {"city": "Oslo", "days": "3"}, False),
        ("f", {"city": "Oslo", "days": True}, False),
        ("f", {"city": "Oslo", "days": 0}, False),
        ("f", {"city": "Oslo", "days": 10}, False),
        ("f", {"city": "Oslo", "tags": [1]}, False),
        ("f", {"city": "Oslo", "other": 1}, False),
    ],
)
def test_a_call_is_held_against_its_schema(name: str, arguments: dict, is_valid: bool) -> None:
    item = Item("t:1", "tools", "", [], [TOOL], "", [("f", {"city": "Oslo"})])
    row = grade(item, say("", ((name, json.dumps(arguments)),)))
    assert row.schema_valid is is_valid
    assert row.is_right is (name == "f" and arguments == {"city": "Oslo"})


def test_no_call_is_no_valid_call() -> None:
    item = Item("t:1", "tools", "", [], [TOOL], "", [("f", {"city": "Oslo"})])
    assert grade(item, say("Oslo")).schema_valid is False


def test_a_value_is_not_found_inside_another() -> None:
    assert contains("The result is 42.", "42")
    assert contains("巴黎是首都", "巴黎")
    assert not contains("The result is 142.", "42")
    assert not contains("narrow", "row")


@pytest.mark.parametrize(
    ("set_name", "answer", "content", "is_right"),
    [
        ("free_question", "对。", "对。", True),
        ("free_question", "对。", "不对。首都是巴黎。", False),
        ("free_question", "No.", "No. It is Paris.", True),
        ("arithmetic", "6", "12 - 6 = 5.", False),
        ("arithmetic", "6", "12 - 6 = 6.", True),
        ("arithmetic", "6", "6", True),
        ("arithmetic", "6", "It is 6.", True),
        ("arithmetic", "6", "12 / 2 = 6.5", False),
        ("arithmetic", "6", "6 - 12 = -6", False),
        ("arithmetic", "6", "12 - 6 = 5, not 6.", False),
    ],
)
def test_neither_half_a_verdict_nor_a_number_of_the_question_is_right(
    set_name: str, answer: str, content: str, is_right: bool
) -> None:
    item = Item("x:1", set_name, "", [], [], answer, [])
    assert grade(item, say(content)).is_right is is_right


def test_an_answer_is_read_from_its_ids(tokenizer: Tokenizer) -> None:
    text = "I think.\n</think>\n\n它是42°C。"
    ids = [*tokenizer.encode(text, allow_control=True), tokenizer.control.turn_end]
    answer = read_answer(choice(), ids, "stop", tokenizer)
    assert (answer.reasoning, answer.content) == ("I think.", "它是42°C。")
    assert answer.num_tokens == len(ids)


def test_wilson_intervals_equal_published_values() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20)[0] == 0.0
    assert round(wilson(0, 20)[1], 4) == 0.1611
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_mid_p() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == pytest.approx(1.0)
    assert mcnemar(0, 6) == pytest.approx(2 * 0.5 / 64)
    assert mcnemar(1, 8) == mcnemar(8, 1) == pytest.approx(2 * (1 + 9 / 2) / 512)


def test_paired_difference_counts_flips() -> None:
    first = [True] * 6 + [False] * 4
    second = [True] * 3 + [False] * 3 + [True] * 1 + [False] * 3
    result = paired(first, second)
    assert (result.only_first, result.only_second, result.difference) == (3, 1, -0.2)
    assert result.low < -0.2 < result.high


def test_reports_name_every_set_and_run() -> None:
    rows = [replace(grade(choice(), say("The answer is (C).")), id=f"k:{n}") for n in range(10)]
    worse = [replace(row, is_right=n > 4) for n, row in enumerate(rows)]
    text = report(rows)
    assert "knowledge" in text
    assert "10/10" in text
    assert "stopped by itself" in text
    table = comparison([("bf16", rows), ("fp8", worse)])
    assert "-50.00%" in table
    with pytest.raises(ValueError, match="share no question"):
        comparison([("bf16", rows), ("fp8", [replace(rows[0], id="other")])])
    half = [replace(row, fingerprint="other") if n % 2 else row for n, row in enumerate(worse)]
    assert "fp8: 5 questions that bf16 has not" in comparison([("bf16", rows), ("fp8", half)])
