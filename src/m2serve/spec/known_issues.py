"""What is known to go wrong with MiniMax-M2 deployments, read from known_issues.toml. No torch.

An issue is found in three ways: by the facts of a deployment (`issues_for`), by a line of a log
(`issues_in_log`), and by a symptom an endpoint shows (`issues_with_symptom`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from m2serve.errors import M2Error
from m2serve.spec.conditions import Condition, any_holds, read_condition, read_situation
from m2serve.spec.log_patterns import LogPattern, plain_line, read_pattern
from m2serve.spec.situation import Situation
from m2serve.spec.tables import check_tables, read_row, read_toml

FILE = "known_issues.toml"
MAX_LINES_AN_ISSUE = 20
EFFECTS = ("fails", "wrong", "slow", "note")
CONFIDENCES = ("A", "B", "C")
SYMPTOMS = (
    "arguments-cut",
    "cancel-ignored",
    "empty",
    "error-500",
    "fails",
    "garbled",
    "json-broken",
    "length",
    "loops",
    "marker-leaks",
    "no-prefix-cache",
    "no-tool-call",
    "prompt-count",
    "reasoning-lost",
    "slow",
    "stream-bursts",
    "stream-differs",
    "think-in-content",
    "think-in-reasoning",
    "truncates",
)


@dataclass(frozen=True)
class Remedy:
    """Settings a machine can apply: `--flag=value`, `NAME=value`; what is added replaces."""

    add_flags: tuple[str, ...] = ()
    drop_flags: tuple[str, ...] = ()
    add_env: tuple[str, ...] = ()
    drop_env: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownIssue:
    """`effect`: the engine "fails" (does not start, crashes), output is "wrong", it is "slow", or
    it is a "note". It is there when one of `when` holds. `seen_in` says where it was seen when
    that is no condition. `confidence`: A the thread or text names cause or fix, B symptom known
    and the cause partly, C one document says so.
    """

    id: str
    title: str
    effect: str
    cause: str
    fix: str
    reference: str
    confidence: str
    seen_in: str = ""
    symptoms: tuple[str, ...] = ()
    settings: Remedy = Remedy()
    when: tuple[Condition, ...] = ()
    log: tuple[LogPattern, ...] = ()
    example_situation: Situation | None = None
    example_log: str = ""

    @property
    def versions(self) -> str:
        """The engines and versions concerned, as text for people."""
        named = dict.fromkeys(_named_versions(condition) for condition in self.when)
        return "; ".join(name for name in (*named, self.seen_in) if name)

    def applies(self, situation: Situation) -> bool | None:
        """None when a fact it depends on is unknown, or it depends on none."""
        return any_holds(self.when, situation)


@dataclass(frozen=True)
class LogMatch:
    """`line_number` counts from 1; `line` is plain and bounded; `count` is how often it stood."""

    issue: KnownIssue
    line_number: int
    line: str
    count: int = 1


@cache
def load_known_issues() -> tuple[KnownIssue, ...]:
    """Every row of known_issues.toml; M2Error when the file is wrong."""
    return read_known_issues(read_toml(FILE))


def find_issue(id: str) -> KnownIssue:
    """By id; KeyError when there is none, which is a mistake of ours."""
    return {issue.id: issue for issue in load_known_issues()}[id]


def issues_for(situation: Situation) -> tuple[KnownIssue, ...]:
    """The issues a deployment certainly has, in the file's order."""
    return tuple(issue for issue in load_known_issues() if issue.applies(situation))


def issues_with_symptom(symptoms: Iterable[str], situation: Situation) -> tuple[KnownIssue, ...]:
    """The issues with one of the symptoms that the known facts do not rule out."""
    shown = set(symptoms)
    return tuple(
        issue
        for issue in load_known_issues()
        if shown.intersection(issue.symptoms) and issue.applies(situation) is not False
    )


def issues_in_log(lines: Iterable[str]) -> tuple[LogMatch, ...]:
    """The issues whose signs stand in a log, by the line where each stands first."""
    open_issues = {issue.id: issue for issue in load_known_issues() if issue.log}
    found: dict[str, LogMatch] = {}
    for number, raw in enumerate(lines, start=1):
        line = plain_line(raw)
        lowered = line.lower()
        for issue in tuple(open_issues.values()):
            if not any(pattern.matches(lowered) for pattern in issue.log):
                continue
            first = found.get(issue.id, LogMatch(issue, number, line.strip(), 0))
            found[issue.id] = LogMatch(issue, first.line_number, first.line, first.count + 1)
            if found[issue.id].count == MAX_LINES_AN_ISSUE:
                del open_issues[issue.id]
    return tuple(sorted(found.values(), key=lambda match: match.line_number))


def read_known_issues(document: Mapping[str, Any]) -> tuple[KnownIssue, ...]:
    """The issues of a parsed known_issues.toml; M2Error names the row and the key."""
    check_tables(document, ("issue",), FILE)
    rows = document.get("issue")
    if not isinstance(rows, list):
        raise M2Error(f"{FILE}, issue: an array of tables is needed")
    issues: dict[str, KnownIssue] = {}
    for number, row in enumerate(rows, start=1):
        issue = _read_issue(row, f"{FILE}, issue number {number}")
        if issue.id in issues:
            raise M2Error(f"{FILE}, issue {issue.id!r} appears twice")
        issues[issue.id] = issue
    return tuple(issues.values())


@dataclass(frozen=True)
class _Row:
    """The keys of an issue that are plain values."""

    id: str
    title: str
    effect: str
    cause: str
    fix: str
    reference: str
    confidence: str
    seen_in: str = ""
    symptoms: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    settings: Remedy = Remedy()
    example_log: str = ""


def _read_issue(row: Any, place: str) -> KnownIssue:
    if not isinstance(row, dict):
        raise M2Error(f"{place}: a table is needed, not {row!r}")
    place = f"{FILE}, issue {row.get('id', place)!r}"
    nested = {key: row[key] for key in ("when", "example_situation") if key in row}
    plain = read_row(_Row, {k: v for k, v in row.items() if k not in nested}, place)
    tables = nested.get("when", [])
    if not isinstance(tables, list):
        raise M2Error(f"{place}, when: an array of tables is needed")
    example = nested.get("example_situation")
    conditions = (read_condition(table, f"{place}, when[{i}]") for i, table in enumerate(tables))
    patterns = (read_pattern(text, f"{place}, log[{i}]") for i, text in enumerate(plain.log))
    seen = None if example is None else read_situation(example, f"{place}, example_situation")
    read = {"when": tuple(conditions), "log": tuple(patterns), "example_situation": seen}
    issue = KnownIssue(**{**vars(plain), **read})
    _check_issue(issue, place)
    return issue


def _check_issue(issue: KnownIssue, place: str) -> None:
    for name in ("id", "title", "cause", "fix", "reference"):
        if not getattr(issue, name).strip():
            raise M2Error(f"{place}, {name}: empty text says nothing")
    for name, value, known in (
        ("effect", issue.effect, EFFECTS),
        ("confidence", issue.confidence, CONFIDENCES),
        *(("symptoms", symptom, SYMPTOMS) for symptom in issue.symptoms),
    ):
        if value not in known:
            raise M2Error(f"{place}, {name}: {value!r} is none of {', '.join(known)}")
    if not issue.when and not issue.log:
        raise M2Error(f"{place}: neither when nor log says how to find it")
    if bool(issue.when) != (issue.example_situation is not None):
        raise M2Error(f"{place}: when and example_situation go together")
    if bool(issue.log) != bool(issue.example_log):
        raise M2Error(f"{place}: log and example_log go together")
    _check_settings(issue.settings, place)


def _check_settings(settings: Remedy, place: str) -> None:
    for flag in (*settings.add_flags, *settings.drop_flags):
        if not flag.startswith("--"):
            raise M2Error(f"{place}, settings: flag {flag!r} does not begin with --")
    for entry in settings.add_env:
        if "=" not in entry:
            raise M2Error(f"{place}, settings: {entry!r} is not NAME=value")


def _named_versions(condition: Condition) -> str:
    ranges = condition.wanted("engine_version")
    return " ".join(("/".join(condition.wanted("engine")), *ranges)) if ranges else ""
