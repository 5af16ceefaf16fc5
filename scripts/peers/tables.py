"""Verdicts as a Markdown table and as rows of perf/<machine>.csv. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.peers.figures import BANDWIDTH, unit
from scripts.peers.rounds import Case, Sample
from scripts.peers.verdicts import Spread, Summary, Verdict, bandwidth, judge, summarize

_HEADER = (
    "| what | ours | median (min to max) | against | median (min to max) | ratio (min to max) "
    "| target | read GB/s | |\n|---|---|---|---|---|---|---|---|---|\n"
)
COLUMNS = ("date", "commit", "machine", "command", "what", "value", "unit", "note")
_WORDS = {True: "pass", False: "**FAIL**", None: "not measured"}


@dataclass(frozen=True)
class Origin:
    """The columns of a row that say where it comes from; `command` repeats the comparison."""

    date: str
    commit: str
    machine: str
    command: str


def markdown(cases: Sequence[Case], samples: Sequence[Sample]) -> str:
    """The table of all cases that were measured, then who they are and how they were started."""
    measured = [case for case in cases if _samples_of(case, samples)]
    rows = [
        _table_row(case, verdict, bandwidth(case, samples))
        for case in measured
        for verdict in judge(case, samples)
    ]
    described = [_description(case, samples) for case in measured]
    return _HEADER + "".join(rows) + "\n" + "\n".join(described)


def csv_rows(cases: Sequence[Case], samples: Sequence[Sample], origin: Origin) -> str:
    """A row a contender and figure, a row a ratio; perf/README.md names the columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for case in cases:
        if not _samples_of(case, samples):
            continue
        note = _note(case, samples)
        metrics = {*case.also, *(target.metric for target in case.targets)}
        for summary in summarize(case, samples):
            start = _start(origin, summary.command)
            for metric, value in summary.figures.items():
                if metric in metrics:
                    text = f"{summary.contender}; {_range(value)}; {note}"
                    writer.writerow((*start, metric, f"{value.median:.5g}", unit(metric), text))
            if summary.error:
                text = f"{summary.contender}; failed: {' '.join(summary.error.split())}; {note}"
                writer.writerow((*start, "failed", "", "", text))
        for verdict in judge(case, samples):
            if verdict.result is not None:
                start = _start(origin, origin.command)
                writer.writerow((*start, *_judged(verdict, verdict.result, note)))
    return out.getvalue()


def _judged(verdict: Verdict, result: Spread, note: str) -> tuple[str, ...]:
    metric = verdict.target.metric
    text = f"{_target(verdict)}: {_WORDS[verdict.passed].strip('*')}; {_range(result)}"
    if not verdict.target.against:
        what = f"{metric} of {verdict.ours}, judged"
        return (what, f"{result.median:.5g}", unit(metric), f"{text}; {note}")
    what = f"{metric} of {verdict.ours} / {verdict.theirs}"
    return (what, f"{result.median:.3f}", "ratio", f"{text}{_without(verdict)}; {note}")


def _without(verdict: Verdict) -> str:
    """Whoever else would have been held against ours, had they given a figure."""
    both = verdict.result is not None and verdict.lacking
    return f" (no figure of {', '.join(verdict.lacking)})" if both else ""


def _start(origin: Origin, command: str) -> tuple[str, ...]:
    return (origin.date, origin.commit, origin.machine, command)


def _samples_of(case: Case, samples: Sequence[Sample]) -> list[Sample]:
    return [s for s in samples if (s.section, s.case) == (case.section, case.name)]


def _note(case: Case, samples: Sequence[Sample]) -> str:
    read = bandwidth(case, samples)
    busiest = max(sample.others_busy_cores for sample in _samples_of(case, samples))
    text = f"{case.section} {case.name}, interleaved"
    if read is not None:
        text += f", read bandwidth {read.median:.1f} GB/s in the same minutes"
    return f"{text}, others used at most {busiest:g} cores"


def _table_row(case: Case, verdict: Verdict, read: Spread | None) -> str:
    cells = (
        f"{case.section} {case.name}: {verdict.target.metric}",
        verdict.ours,
        _shown(verdict.our_value),
        verdict.theirs + _without(verdict),
        _shown(verdict.their_value),
        _shown(verdict.result, ".2f") if verdict.target.against else "",
        _target(verdict),
        f"{read.median:.1f}" if read else "",
        _WORDS[verdict.passed],
    )
    return f"| {' | '.join(cells)} |\n"


def _description(case: Case, samples: Sequence[Sample]) -> str:
    busiest = max(sample.others_busy_cores for sample in _samples_of(case, samples))
    lines = [f"{case.section} {case.name} (others used at most {busiest:g} cores):\n"]
    lines += [_contender_line(summary) for summary in summarize(case, samples)]
    return "\n".join(lines) + "\n"


def _contender_line(summary: Summary) -> str:
    figures = ", ".join(
        f"{name} {_shown(value)} of {value.count}"
        for name, value in summary.figures.items()
        if name != BANDWIDTH or len(summary.figures) == 1
    )
    failure = f"failed: {' '.join(summary.error.split())}" if summary.error else ""
    outcome = "; ".join(part for part in (figures, failure) if part) or "not run"
    return f"- {summary.contender}: `{summary.command}`: {outcome}"


def _target(verdict: Verdict) -> str:
    times = " x" if verdict.target.against else ""
    return f"{verdict.target.kind} {verdict.target.limit:.3g}{times}"


def _shown(value: Spread | None, form: str = ".4g") -> str:
    if value is None:
        return ""
    return f"{value.median:{form}} ({value.minimum:{form}} to {value.maximum:{form}})"


def _range(value: Spread) -> str:
    return f"median of {value.count} rounds ({value.minimum:.4g} to {value.maximum:.4g})"
