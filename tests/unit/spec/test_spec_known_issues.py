"""Every known issue fires on its own example and on nothing that is healthy."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from m2serve.errors import M2Error
from m2serve.spec.conditions import read_situation
from m2serve.spec.known_issues import (
    MAX_LINES_AN_ISSUE,
    KnownIssue,
    Remedy,
    find_issue,
    issues_for,
    issues_in_log,
    issues_with_symptom,
    load_known_issues,
    read_known_issues,
)
from m2serve.spec.situation import Situation

DATA = Path(__file__).resolve().parents[2] / "data"
HEALTHY_LOGS = sorted((DATA / "healthy_logs").glob("*.log"))
HEALTHY_SITUATIONS = tomllib.loads((DATA / "healthy_situations.toml").read_text())
ISSUES = load_known_issues()
BY_FACTS = [issue for issue in ISSUES if issue.when]
BY_LOG = [issue for issue in ISSUES if issue.log]
WITH_SETTINGS = [issue for issue in ISSUES if issue.settings != Remedy()]


def name(issue: KnownIssue) -> str:
    return issue.id


def applied(remedy: Remedy, situation: Situation) -> Situation:
    """The situation after a remedy, with the facts that follow from flags."""

    def merged(
        old: frozenset[str] | None, add: tuple[str, ...], drop: tuple[str, ...]
    ) -> frozenset:
        names = {entry.partition("=")[0] for entry in (*add, *drop)}
        kept = {entry for entry in old or () if entry.partition("=")[0] not in names}
        return frozenset(kept | set(add))

    facts = {
        "flags": merged(situation.flags, remedy.add_flags, remedy.drop_flags),
        "env": merged(situation.env, remedy.add_env, remedy.drop_env),
    }
    if "--enable-expert-parallel" in remedy.add_flags + remedy.drop_flags:
        facts["expert_parallel"] = "--enable-expert-parallel" in remedy.add_flags
    if any("speculative" in flag for flag in remedy.drop_flags):
        facts["draft"] = ""
    return dataclasses.replace(situation, **facts)


def test_there_are_enough_and_the_numbers_rise() -> None:
    numbers = [int(issue.id.removeprefix("K")) for issue in ISSUES]
    assert len(ISSUES) >= 85
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("issue", BY_FACTS, ids=name)
def test_the_condition_fires_on_its_example(issue: KnownIssue) -> None:
    assert issue.example_situation is not None
    assert issue.applies(issue.example_situation) is True
    assert issue in issues_for(issue.example_situation)


@pytest.mark.parametrize("issue", BY_FACTS, ids=name)
def test_the_condition_does_not_fire_where_nothing_is_known(issue: KnownIssue) -> None:
    assert issue.applies(Situation()) is None


@pytest.mark.parametrize("issue", BY_FACTS, ids=name)
def test_each_fact_of_the_example_that_the_condition_names_is_needed(issue: KnownIssue) -> None:
    """With that fact unknown, nothing fires any more."""
    assert issue.example_situation is not None
    blank = Situation()
    holding = [c for c in issue.when if c.holds(issue.example_situation)]
    for term in (term for condition in holding for term in condition.terms):
        unknown = {term.fact: getattr(blank, term.fact)}
        less = dataclasses.replace(issue.example_situation, **unknown)
        named = [condition for condition in holding if condition.wanted(term.fact)]
        assert not any(condition.holds(less) for condition in named)


@pytest.mark.parametrize("issue", WITH_SETTINGS, ids=name)
def test_the_settings_cure_the_example(issue: KnownIssue) -> None:
    assert issue.example_situation is not None
    assert issue.applies(applied(issue.settings, issue.example_situation)) is not True


@pytest.mark.parametrize("situation", HEALTHY_SITUATIONS)
def test_no_condition_fires_on_a_healthy_deployment(situation: str) -> None:
    healthy = read_situation(HEALTHY_SITUATIONS[situation], situation)
    assert [issue.id for issue in issues_for(healthy)] == []


@pytest.mark.parametrize("issue", BY_LOG, ids=name)
def test_the_log_pattern_finds_its_example(issue: KnownIssue) -> None:
    healthy = HEALTHY_LOGS[0].read_text().splitlines()
    lines = [*healthy, f"\x1b[0;36m(EngineCore pid=9)\x1b[0;0m {issue.example_log}", *healthy]
    [match] = [match for match in issues_in_log(lines) if match.issue.id == issue.id]
    assert match.line_number == len(healthy) + 1
    assert "\x1b" not in match.line
    assert match.count == 1


@pytest.mark.parametrize("issue", BY_LOG, ids=name)
def test_every_pattern_of_an_issue_is_told_apart_from_healthy_lines(issue: KnownIssue) -> None:
    for path in HEALTHY_LOGS:
        for line in path.read_text().lower().splitlines():
            assert not any(pattern.matches(line) for pattern in issue.log), line


@pytest.mark.parametrize("path", HEALTHY_LOGS, ids=lambda path: path.stem)
def test_no_pattern_finds_anything_in_a_healthy_log(path: Path) -> None:
    assert issues_in_log(path.read_text().splitlines()) == ()


def test_a_symptom_leads_to_the_issues_the_facts_allow() -> None:
    spark = Situation(engine="vllm", arch="sm_121", quantization="nvfp4")
    found = {issue.id for issue in issues_with_symptom({"garbled"}, spark)}
    assert "K35" in found
    assert not found & {"K31", "K33", "K34", "K40"}, "other engines and architectures are ruled out"
    assert issues_with_symptom((), spark) == ()


def test_repeated_lines_are_counted_to_a_bound() -> None:
    line = find_issue("K52").example_log
    [match] = issues_in_log(["fine", *[line] * 500])
    assert (match.issue.id, match.line_number) == ("K52", 2)
    assert match.count == MAX_LINES_AN_ISSUE


def test_matches_come_in_the_order_of_the_log() -> None:
    log = [find_issue(id).example_log for id in ("K115", "K109", "K102")]
    assert [match.issue.id for match in issues_in_log(log)] == ["K115", "K109", "K102"]


def test_versions_read_well() -> None:
    assert find_issue("K06").versions == "vllm >=0.13,<0.17"
    assert find_issue("K14").versions.startswith("llama.cpp")


GOOD = {
    "id": "K1",
    "title": "t",
    "effect": "fails",
    "cause": "c",
    "fix": "f",
    "reference": "r",
    "confidence": "A",
    "log": ["some text"],
    "example_log": "some text",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"effect": "bad"}, "effect: 'bad'"),
        ({"confidence": "D"}, "confidence: 'D'"),
        ({"symptoms": ["itch"]}, "symptoms: 'itch'"),
        ({"title": " "}, "title: empty"),
        ({"colour": "red"}, "key 'colour' is unknown"),
        ({"fix": 7}, "7 is not text"),
        ({"log": ["ab"]}, "'ab'"),
        ({"log": ["one two ... x"]}, "'x'"),
        ({"log": [], "example_log": ""}, "neither when nor log"),
        ({"example_log": ""}, "log and example_log"),
        ({"when": [{"engine": "vllm"}]}, "when and example_situation"),
        ({"when": {"engine": "vllm"}, "example_situation": {}}, "array of tables"),
        ({"when": [{}], "example_situation": {}}, "at least one fact"),
        ({"when": [{"planet": "x"}], "example_situation": {}}, "fact 'planet' is unknown"),
        ({"when": [{"tensor_parallel": "about 8"}], "example_situation": {}}, "bound 'about 8'"),
        (
            {"when": [{"tensor_parallel": ">lots"}], "example_situation": {}},
            "no number and no fact",
        ),
        ({"when": [{"expert_parallel": "yes"}], "example_situation": {}}, "wrong type"),
        ({"when": [{"flags": "--x"}], "example_situation": {}}, "no list"),
        ({"when": [{"engine_version": "0.15"}], "example_situation": {}}, "version bound"),
        ({"when": [{"engine": 3}], "example_situation": {}}, "3 is not text"),
        ({"example_situation": {"engine": 3}, "when": [{"engine": "x"}]}, "wrong type"),
        ({"settings": {"add_flags": ["x"]}}, "'x' does not begin"),
        ({"settings": {"add_env": ["x"]}}, "'x' is not NAME=value"),
    ],
)
def test_a_wrong_row_is_refused_by_name(change: dict, said: str) -> None:
    with pytest.raises(M2Error, match="K1") as raised:
        read_known_issues({"issue": [{**GOOD, **change}]})
    assert said in str(raised.value)


def test_a_wrong_document_is_refused() -> None:
    assert len(read_known_issues({"issue": [GOOD]})) == 1
    with pytest.raises(M2Error, match="twice"):
        read_known_issues({"issue": [GOOD, GOOD]})
    with pytest.raises(M2Error, match="'issues' is unknown"):
        read_known_issues({"issues": [GOOD]})
    with pytest.raises(M2Error, match="array of tables"):
        read_known_issues({"issue": "K1"})
