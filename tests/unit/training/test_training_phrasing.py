"""Rewording keeps what a question is about, and never says what is kept back for the quiz."""

import random
import re

import pytest

from training.conversations import arithmetic as a
from training.conversations import chat, free_questions
from training.conversations import json_objects as j
from training.conversations import python_functions as p
from training.conversations import retrieval as r
from training.conversations.phrasing import BARE, FRAMES, frames, meets, reword
from training.conversations.tool_domains import DOMAINS
from training.facts import Relation, load_relations

RELATIONS = load_relations()
SLOT = re.compile(r"\{[a-z_+]*\}")


# Everything that is reworded: in training, kept back, the language.
WORDED = [
    *((a._BARE[lang], a._BARE_HELD_OUT[lang], lang) for lang in ("en", "zh", "fr")),
    (j._ASK, j._ASK_HELD_OUT, "en"),
    (j._ASK_ZH, j._ASK_ZH_HELD_OUT, "zh"),
    (p._ASK, p._ASK_HELD_OUT, "en"),
    (p._ASK_NAMED, p._ASK_NAMED_HELD_OUT, "en"),
    (r._REPEAT, r._REPEAT_HELD_OUT, "en"),
    (r._REPEAT_ZH, r._REPEAT_ZH_HELD_OUT, "zh"),
    (r._NTH, r._NTH_HELD_OUT, "en"),
    *(
        (train, held_out, "zh" if name in ("密码", "老家") else "en")
        for name, (train, held_out) in r._ASKED.items()
    ),
    *((w.train, w.held_out, lang) for d in DOMAINS.values() for lang, w in d.wording.items()),
    *((f.train + f.framed, f.held_out, lang) for x in RELATIONS for lang, f in x.phrasing.items()),
]


@pytest.mark.parametrize(("train", "held_out", "language"), WORDED)
def test_what_is_kept_back_is_never_said(
    train: tuple[str, ...], held_out: tuple[str, ...], language: str
) -> None:
    rng = random.Random(str(held_out))
    assert held_out
    for template in train:
        for said in {template, *(reword(rng, template, language, held_out) for _ in range(30))}:
            assert not meets(said, held_out), said


def test_small_talk_of_the_quiz_is_never_said_either() -> None:
    pairs = [(talk[3], talk[4]) for talk in chat._TALKS]
    pairs += [(unknown[2], unknown[3]) for unknown in chat._UNKNOWN.values()]
    about = [
        text.replace("{s}", "{x}") for asked in free_questions._ABOUT.values() for text in asked
    ]
    for train, held_out in pairs:
        for said in (*train, *about):
            assert not meets(said, held_out), said


def test_a_phrasing_inside_a_longer_text_is_met() -> None:
    assert meets("Now: tell me the code of {s}, please", ["Tell me the code of {s}."])
    assert not meets("Tell me the codes of {s}.", ["Tell me the code of {s}."])
    assert meets("我想问：{s}的首都叫什么？", ["{s}的首都叫什么？"])


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_a_relation_is_asked_in_many_ways(relation: Relation) -> None:
    for phrasing in relation.phrasing.values():
        assert len(phrasing.framed) >= 18
        assert all("{s}" in text and "{ask}" not in text for text in phrasing.framed)


def test_rewording_keeps_every_slot_in_place() -> None:
    rng = random.Random(1)
    for domain in DOMAINS.values():
        for language, wording in domain.wording.items():
            for template in wording.train * 8:
                said = reword(rng, template, language, wording.held_out)
                assert SLOT.findall(said) == SLOT.findall(template)


def test_rewording_changes_a_part_of_what_is_said() -> None:
    rng = random.Random(2)
    said = [reword(rng, "What is the capital of {s}?", "en") for _ in range(1000)]
    changed = sum(text != "What is the capital of {s}?" for text in said)
    assert 150 < changed < 350
    assert len(set(said)) > 40


def test_a_frame_that_is_kept_back_is_left_out() -> None:
    everything = frames("the age of {s}", "age", "{s}", "en", ())
    rest = frames("the age of {s}", "age", "{s}", "en", ("state the age of {s}",))
    assert len(everything) == len(FRAMES["en"])
    assert set(everything) - set(rest) == {"State the age of {s}."}


def test_bare_questions_name_the_subject_only() -> None:
    assert all(SLOT.findall(text) == ["{s}"] for texts in BARE.values() for text in texts)
