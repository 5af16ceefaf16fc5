"""Tables of the quiz: shares with 95 % intervals, and runs against the first of them, paired."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from training.facts import CATEGORIES
from training.intervals import paired, wilson
from training.quiz_scoring import Row

Rows = Sequence[Row]


def load_rows(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def report(rows: Rows) -> str:
    """Every set, the categories of `knowledge`, valid tool calls, and how answers ended."""
    lines = [f"{'':24}{'right':>11}{'share':>9}   95 % interval   tokens"]
    for name, part in _by(rows, "set").items():
        lines.append(_line(name, part, [row.is_right for row in part]))
    categories = _by([row for row in rows if row.set == "knowledge"], "category")
    for name in (name for name in CATEGORIES if name in categories):
        part = categories[name]
        lines.append(_line(f"  {name}", part, [row.is_right for row in part]))
    called = [row for row in rows if _is_call(row)]
    if called:
        lines.append(_line("valid tool calls", called, [bool(r.schema_valid) for r in called]))
    lines.append(_line("answers read", rows, [row.is_parsed for row in rows]))
    lines.append(_line("stopped by itself", rows, [row.finish_reason == "stop" for row in rows]))
    return "\n".join(lines)


def _line(name: str, rows: Rows, marks: Sequence[bool]) -> str:
    low, high = wilson(sum(marks), len(marks))
    tokens = sum(row.num_tokens for row in rows) / len(rows)
    share = sum(marks) / len(marks)
    counted = f"{sum(marks)}/{len(marks)}"
    return f"{name:24}{counted:>11}{share:9.1%}   {low:6.1%} - {high:5.1%}   {tokens:6.1f}"


def comparison(runs: Sequence[tuple[str, Rows]]) -> str:
    """Each run against the first, over the questions both were asked; raises ValueError if none."""
    first_name, first_rows = runs[0]
    base = {(row.id, row.fingerprint): row for row in first_rows}
    lines = [f"against {first_name}", f"{'run':24}{'set':20}{'share':>8}{'difference':>12}"]
    lines[-1] += "   95 % interval       lost  won       p"
    for name, rows in runs[1:]:
        found = [(base.get((row.id, row.fingerprint)), row) for row in rows]
        common = [(first, row) for first, row in found if first is not None]
        if not common:
            raise ValueError(f"{name} and {first_name} share no question")
        if len(common) < len(rows):
            lines.append(f"{name}: {len(rows) - len(common)} questions that {first_name} has not")
        for set_name in ("all", *dict.fromkeys(row.set for _, row in common)):
            chosen = [pair for pair in common if set_name in ("all", pair[1].set)]
            marks = [(first.is_right, row.is_right) for first, row in chosen]
            lines.append(_against(name, set_name, marks))
        called = [(bool(a.schema_valid), bool(b.schema_valid)) for a, b in common if _is_call(b)]
        stopped = [(a.finish_reason == "stop", b.finish_reason == "stop") for a, b in common]
        lines.append(_against(name, "stopped by itself", stopped))
        if called:
            lines.append(_against(name, "valid tool calls", called))
    return "\n".join(lines)


def _is_call(row: Row) -> bool:
    return row.schema_valid is not None


def _against(name: str, what: str, marks: Sequence[tuple[bool, bool]]) -> str:
    result = paired([first for first, _ in marks], [second for _, second in marks])
    share = sum(second for _, second in marks) / len(marks)
    return (
        f"{name:24}{what:20}{share:8.1%}{result.difference:+12.2%}"
        f"   {result.low:+7.2%} - {result.high:+7.2%}"
        f"{result.only_first:6}{result.only_second:5}{result.p:9.3f}"
    )


def _by(rows: Rows, field: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, field)].append(row)
    return dict(groups)
