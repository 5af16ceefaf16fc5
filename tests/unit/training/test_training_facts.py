"""The world's tables: whole, unambiguous, and with phrasings kept back for the quiz."""

import pytest

from training.conversations.fact_choice import facts_of_category
from training.facts import CATEGORIES, WORLD, Relation, fill, load_relations

RELATIONS = load_relations()


def test_every_category_has_enough_for_the_quiz() -> None:
    for category in CATEGORIES:
        assert len(facts_of_category(category, "en")) >= 90, category
    assert sum(len(relation.facts) for relation in RELATIONS) > 3000


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_a_relation_is_sound(relation: Relation) -> None:
    assert relation.category in CATEGORIES
    for language, phrasing in relation.phrasing.items():
        assert len(phrasing.train) >= 1
        assert len(phrasing.held_out) >= 1
        assert not set(phrasing.train) & set(phrasing.held_out)
        assert "{o}" in phrasing.statement
        for question in (*phrasing.train, *phrasing.held_out):
            assert "{s}" in question
            assert "{o}" not in question
        facts = relation.facts_in(language)
        assert facts
        if relation.as_choice:
            assert len({fact.object[language] for fact in facts}) >= 3


def test_names_are_written_in_the_language_they_claim() -> None:
    for relation in RELATIONS:
        for fact in relation.facts:
            for name in (fact.subject["en"], fact.object["en"]):
                assert name == name.strip() != ""
                assert not any("\u4e00" <= character <= "\u9fff" for character in name)


def test_every_file_names_its_source() -> None:
    for path in WORLD.glob("*.toml"):
        assert path.read_text("utf-8").startswith("# "), path


def test_a_template_takes_the_right_article_and_a_capital() -> None:
    sides = next(relation for relation in RELATIONS if relation.name == "polygon_sides")
    octagon = next(fact for fact in sides.facts if fact.subject["en"] == "octagon")
    assert fill("A {s} has {o} sides.", octagon, "en") == "An octagon has 8 sides."
    assert fill("{s} has {o} sides.", octagon, "en") == "Octagon has 8 sides."
    assert fill("Is it a {s}?", octagon, "en") == "Is it an octagon?"
