"""Rewording keeps what a question is about, and never says what is kept back for the quiz."""

import random
import re

import pytest

from training.conversations.phrasing import BARE, FRAMES, frames, reword
from training.conversations.tool_domains import DOMAINS
from training.facts import Relation, load_relations

RELATIONS = load_relations()
SLOT = re.compile(r"\{[a-z_+]*\}")


def _plain(text: str) -> str:
    return text.casefold().rstrip(".?!。？！ ")


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_a_relation_is_asked_in_many_ways_none_of_them_kept_back(relation: Relation) -> None:
    for language, phrasing in relation.phrasing.items():
        assert len(phrasing.framed) >= 18
        assert all("{s}" in text and "{ask}" not in text for text in phrasing.framed)
        kept_back = {_plain(text) for text in phrasing.held_out}
        asked = {_plain(text) for text in (*phrasing.train, *phrasing.framed)}
        assert not kept_back & asked, language


@pytest.mark.parametrize("relation", RELATIONS[::7], ids=lambda relation: relation.name)
def test_rewording_never_makes_a_phrasing_that_is_kept_back(relation: Relation) -> None:
    rng = random.Random(relation.name)
    for language, phrasing in relation.phrasing.items():
        kept_back = [_plain(text) for text in phrasing.held_out]
        for template in (*phrasing.train, *phrasing.framed):
            said = {_plain(reword(rng, template, language, phrasing.held_out)) for _ in range(40)}
            assert not [text for text in said for kept in kept_back if text.endswith(kept)]


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
    assert 100 < changed < 400
    assert len(set(said)) > 40


def test_a_frame_that_is_kept_back_is_left_out() -> None:
    everything = frames("the age of {s}", "age", "{s}", "en", ())
    rest = frames("the age of {s}", "age", "{s}", "en", ("name the age of {s}",))
    assert len(everything) == len(FRAMES["en"])
    assert set(everything) - set(rest) == {"Name the age of {s}."}


def test_bare_questions_name_the_subject_only() -> None:
    assert all(SLOT.findall(text) == ["{s}"] for texts in BARE.values() for text in texts)
