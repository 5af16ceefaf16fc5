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
    called = [row for row in rows if row.schema_valid is not None]
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
    base = {row.id: row for row in first_rows}
    lines = [f"against {first_name}", f"{'run':24}{'set':18}{'share':>8}{'difference':>12}"]
    lines[-1] += "   95 % interval       lost  won       p"
    for name, rows in runs[1:]:
        common = [(base[row.id], row) for row in rows if row.id in base]
        if not common:
            raise ValueError(f"{name} and {first_name} share no question")
        sets = ["all", *dict.fromkeys(row.set for _, row in common)]
        for set_name in sets:
            chosen = [p for p in common if set_name in ("all", p[1].set)]
            result = paired([a.is_right for a, _ in chosen], [b.is_right for _, b in chosen])
            share = sum(b.is_right for _, b in chosen) / len(chosen)
            lines.append(
                f"{name:24}{set_name:18}{share:8.1%}{result.difference:+12.2%}"
                f"   {result.low:+7.2%} - {result.high:+7.2%}"
                f"{result.only_first:6}{result.only_second:5}{result.p:9.3f}"
            )
    return "\n".join(lines)


def _by(rows: Rows, field: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, field)].append(row)
    return dict(groups)
