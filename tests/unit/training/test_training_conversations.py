"""Every generator: repeatable, readable by the product's parser, train and quiz apart."""

import json
import random
import re

import pytest

from m2serve.chat.messages import Assistant, User
from m2serve.chat.parser import OutputParser, ParserOptions, parse_output
from m2serve.chat.renderer import render
from m2serve.chat.tokenizer import Tokenizer
from training.batches import said_pieces
from training.conversations import tool_schemas
from training.conversations.arithmetic import SIGNS, Sum, arithmetic, draw_sum, is_kept_back
from training.conversations.drills import LETTERS, drill
from training.conversations.multiple_choice import multiple_choice, shared_options
from training.conversations.retrieval import retrieval
from training.conversations.sample import Sample
from training.conversations.tool_domains import DOMAINS
from training.conversations.tool_drills import tool_drill
from training.conversations.tool_slots import TARGET_LANGUAGE, expression
from training.conversations.tool_use import tool_use
from training.conversations.words import GOODS, NAME_WORDS, OBJECTS, PLACES, WORDS
from training.mixture import GENERATORS, STAGES, draw_sample, stage_at
from training.quiz_items import Item
from training.quiz_scoring import fits_schema
from training.rendering import render_document
from training.split import SPLITS, Split, split_of

KINDS = list(GENERATORS)


def drawn(kind: str, split: Split, count: int) -> list[Sample]:
    return [GENERATORS[kind](random.Random(f"{kind}{n}"), split) for n in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_sample(kind: str, split: Split) -> None:
    assert drawn(kind, split, 30) == drawn(kind, split, 30)
    assert len({repr(sample) for sample in drawn(kind, split, 30)}) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_parses_back_what_training_says(kind: str) -> None:
    for sample in drawn(kind, "train", 60):
        turns = sample.conversation.turns
        last_user = max(i for i, turn in enumerate(turns) if isinstance(turn, User))
        for turn in turns[last_user + 1 :]:
            if isinstance(turn, Assistant):
                assert_parses_back(turn, sample)


def assert_parses_back(turn: Assistant, sample: Sample) -> None:
    """What the model says for this turn, read as the server reads it."""
    assert turn.reasoning
    said = Sample("", (User("x"), turn))
    text = "".join(
        segment.text for segment in render(said.conversation, add_generation_prompt=False)
    )
    output = text.rpartition("]~b]ai\n<think>\n")[2].removesuffix("[e~[\n")
    parsed = parse_output(OutputParser(sample.tools, ParserOptions()), [(output, None)])
    assert parsed.reasoning == turn.reasoning
    assert (parsed.content or "") == turn.content
    calls = [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls]
    assert calls == [(call.name, dict(call.arguments)) for call in turn.tool_calls]


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_is_short(kind: str, tokenizer: Tokenizer) -> None:
    for sample in drawn(kind, "train", 60):
        calls = sample.last.tool_calls  # each is thought of before it is made
        assert len(tokenizer.encode(sample.last.reasoning)) < 160 + 40 * len(calls)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_documents_fit_their_stage(stage, tokenizer: Tokenizer) -> None:
    count = 40
    lengths = [
        len(render_document(draw_sample(random.Random(n), "train", stage), tokenizer))
        for n in range(count)
    ]
    # Longer ones are passed over, so they must be rare. This vocabulary is half the real one.
    assert sum(length > 1.3 * stage.max_tokens for length in lengths) < count / 8


def test_stages_follow_each_other() -> None:
    assert [stage_at(p) for p in (0.0, 0.05, 0.61, 0.62, 0.9, 1.0, 2.0)] == [0, 1, 2, 3, 4, 4, 4]


# What is kept back


KEPT_APART = (
    "arithmetic",
    "copying",
    "free_question",
    "json_object",
    "python_function",
    "retrieval",
    "small_talk",
    "tool_use",
)


@pytest.mark.parametrize("kind", KEPT_APART)
def test_no_question_of_the_quiz_is_trained_on(kind: str) -> None:
    def asked(split: Split) -> set[object]:
        return {
            (repr(sample.turns[0]), repr(sample.tools), sample.answer)
            for sample in drawn(kind, split, 1500)
            if sample.answer or sample.last.tool_calls  # others are not asked
        }

    assert not asked("train") & asked("held_out")


def test_sums_are_split_by_their_numbers() -> None:
    rng = random.Random(0)
    sides: dict[Split, set[Sum]] = {
        split: {draw_sum(rng, split) for _ in range(3000)} for split in SPLITS
    }
    assert not sides["train"] & sides["held_out"]
    for one in sides["train"]:
        if one.operation in ("add", "multiply"):
            assert Sum(one.operation, one.b, one.a) not in sides["held_out"]


def test_a_calculator_is_never_given_a_sum_of_the_quiz() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        left, sign, right = expression(rng, "en").split()
        [operation] = [name for name, shown in SIGNS.items() if shown == sign]
        assert not is_kept_back(Sum(operation, int(left), int(right)))


def test_names_kept_back_for_the_quiz_name_nothing_in_training() -> None:
    trained = {*NAME_WORDS, *WORDS, *OBJECTS, *PLACES, *GOODS}
    for domain in DOMAINS.values():
        trained.update(domain.nouns)
        for slot in (*domain.required.values(), *domain.optional.values()):
            trained.update(slot.names)
    assert not trained & tool_schemas.KEPT_BACK
    rng = random.Random(0)
    for _ in range(2000):
        odd = tool_schemas._odd_name(rng, "train", ("term", "zone", "local"))
        assert not tool_schemas.KEPT_BACK & set(odd.split("_")), odd


def test_schemas_of_the_quiz_are_unseen() -> None:
    def signatures(split: Split) -> set[str]:
        rng = random.Random(1)
        names = [rng.choice(sorted(DOMAINS)) for _ in range(3000)]
        return {tool_schemas.draw_tool(rng, split, name).signature for name in names}

    trained, kept = signatures("train"), signatures("held_out")
    assert not trained & kept
    assert not trained & tool_schemas.RESERVED
    assert len(trained) > 1500


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("get_current_weather", ["unit", "city"]),
        ("get_weather", ["city"]),
        ("get_weather", ["location"]),
    ],
)
def test_the_public_weather_tools_are_kept_back(name: str, parameters: list[str]) -> None:
    signature = tool_schemas.signature_of(name, parameters)
    assert tool_schemas.schema_split(signature) == "held_out"


def test_needles_are_split_by_key_and_value() -> None:
    found: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for n in range(400):
            sample = retrieval(random.Random(n), split, 60, num_needles=1)
            found[split].add(sample.last.content)
    assert not found["train"] & found["held_out"]


def test_about_one_key_in_eight_is_held_out() -> None:
    share = sum(split_of(f"key {n}") == "held_out" for n in range(8000)) / 8000
    assert 0.11 < share < 0.14


# What is said is right


def test_worked_sums_are_right() -> None:
    rng = random.Random(2)
    for _ in range(800):
        problem = draw_sum(rng, "train")
        for left, right in re.findall(r"([0-9 +*/-]+) = (\d+)", problem.worked):
            assert computed(left) == int(right), problem.worked
        assert problem.worked.endswith(f"{problem.text} = {problem.result}.")


def computed(expression: str) -> int:
    """Left to right; the steps have no mixed precedence."""
    parts = expression.split()
    value = int(parts[0])
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for sign, number in zip(parts[1::2], parts[2::2], strict=True):
        value = apply[sign](value, int(number))
    return value


def test_the_right_option_is_among_the_options_once() -> None:
    for n in range(300):
        sample = multiple_choice(random.Random(n), "held_out")
        turn = sample.turns[0]
        assert isinstance(turn, User)
        if not sample.answer:  # several questions over one list
            continue
        lines = turn.text.rpartition("Question: ")[2].splitlines()
        options = [line[3:] for line in lines if line[:1] in LETTERS and line[1:3] == ". "]
        assert 3 <= len(options) == len(set(options)) <= 10
        right = options[LETTERS.index(sample.answer)]
        assert right.lower() in sample.last.reasoning.lower()


def test_every_step_of_a_drill_is_right() -> None:
    drills = [
        s for n in range(300) if ";" in (s := arithmetic(random.Random(n), "train")).last.content
    ]
    assert len(drills) > 50
    for sample in drills:
        for step in sample.last.content.rstrip(".").split("; "):
            left, right = step.split(" = ")
            total, *rest = re.findall(r"(?:^|[-+*] )(\d+)", left)
            value = int(total)
            for sign, number in zip(re.findall(r"[-+*]", left), rest, strict=True):
                value = {
                    "+": value + int(number),
                    "-": value - int(number),
                    "*": value * int(number),
                }[sign]
            assert value == int(right) >= 0, step


def test_shared_options_lead_to_the_letters_they_stand_at() -> None:
    letters = set()
    for n in range(300):
        sample = shared_options(random.Random(n), "train")
        assert isinstance(sample.turns[0], User)
        listed = dict(re.findall(r"^([A-J])\. (.+)$", sample.turns[0].text, re.M))
        said = re.findall(r"(?:So: |所以：)(.+?) \(([A-J])\)", sample.last.content)
        assert said
        for answer, letter in said:
            assert listed[letter] == answer
            letters.add(letter)
    assert letters == set(LETTERS)


def test_tool_drills_say_names_and_values_of_the_tools_on_offer() -> None:
    num_values = 0
    for n in range(300):
        sample = tool_drill(random.Random(n), ("local", "docu", "气") if n % 2 else ())
        shapes = {tool.name: json.loads(tool.definition)["parameters"] for tool in sample.tools}
        assert isinstance(sample.turns[0], User)
        if re.search("with the values|Which values do", sample.turns[0].text):
            continue
        for line in sample.last.content.splitlines():
            name, *said = re.findall(r'"([^"]+)"', re.sub(r" of \[.*?\]", "", line))
            properties = shapes[name]["properties"]
            assert set(shapes[name]["required"]) <= set(said) <= set(properties)
            for parameter, listed, value in re.findall(r'"([^"]+)" of (\[.*?\]): ([^,]+)', line):
                assert json.loads(listed) == properties[parameter]["enum"]
                assert value in json.loads(listed)
                num_values += 1
    assert num_values > 50


def test_enumerations_of_training_are_not_those_of_the_quiz_alone() -> None:
    shown: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for split in ("train", "held_out"):
        for n in range(300):
            form = TARGET_LANGUAGE.form(random.Random(n), split)
            shown[split].add(json.dumps(form.schema))
    assert len(shown["train"]) > 40
    assert len(shown["held_out"]) == len(TARGET_LANGUAGE.forms) == 2


def test_drills_copy_nearly_every_token_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    pieces = said_pieces(tokenizer)
    texts = (tokenizer.token_bytes(i).decode(errors="replace") for i in range(2048))
    wanted = {i for i, text in enumerate(texts) if text.removeprefix(" ") in set(pieces)}
    said = set()
    for n in range(1000):
        document = render_document(drill(random.Random(n), pieces), tokenizer)
        said.update(document.token_ids[document.is_said].tolist())
    assert len(wanted) > 1200
    assert len(wanted & said) > 0.9 * len(wanted)


def test_letters_of_a_drill_are_those_of_the_list() -> None:
    seen = 0
    for n in range(300):
        sample = drill(random.Random(n))
        assert isinstance(sample.turns[0], User)
        listed = re.findall(r"^([A-J])\. (.+)$", sample.turns[0].text, re.M)
        said = re.findall(r"([^;；]+?) \(([A-J])\)", sample.last.content)
        seen += bool(listed and said)
        if listed:
            assert {(letter, text.strip()) for text, letter in said} <= set(listed)
    assert seen > 40


def test_calls_fit_the_offered_schemas() -> None:
    for n in range(400):
        sample = tool_use(random.Random(n), "train")
        tools = [{"function": json.loads(tool.definition)} for tool in sample.tools]
        item = Item("", "", "", [], tools, "", [])
        for turn in sample.turns:
            if isinstance(turn, Assistant):
                for call in turn.tool_calls:
                    assert fits_schema(item, call.name, dict(call.arguments)), call
            assert "{" not in getattr(turn, "content", "")


@pytest.mark.parametrize("depth", [0.0, 1.0])
def test_a_needle_lies_where_it_is_put(depth: float) -> None:
    for n in range(20):
        sample = retrieval(random.Random(n), "train", 300, num_needles=1, depth=depth)
        turn = sample.turns[0]
        assert isinstance(turn, User)
        place = turn.text.index(sample.last.content) / len(turn.text)
        assert place < 0.35 if depth == 0 else place > 0.65
