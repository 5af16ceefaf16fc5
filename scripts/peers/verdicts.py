"""Samples -> medians, ratios and whether the targets are met. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from scripts.peers.figures import BANDWIDTH
from scripts.peers.rounds import Case, Sample, Target


@dataclass(frozen=True)
class Spread:
    median: float
    minimum: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        found = list(values)
        return cls(median(found), min(found), max(found), len(found))


@dataclass(frozen=True)
class Summary:
    """One contender of a case: its figures over the rounds, or why it has none."""

    contender: str
    command: str
    figures: dict[str, Spread]
    error: str


@dataclass(frozen=True)
class Verdict:
    """`result` is the median over the rounds of ours / theirs, or of ours where there is no peer.

    `lacking` are peers that were to be measured and gave no figure.

    A ratio pairs what was measured in the same round, as the machine's memory drifts between them.
    None where ours or every peer has no figure.
    """

    target: Target
    ours: str
    theirs: str
    our_value: Spread | None
    their_value: Spread | None
    result: Spread | None
    lacking: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        if self.result is None:
            return None
        if self.target.kind == "at least":
            return self.result.median >= self.target.limit
        return self.result.median <= self.target.limit


def summarize(case: Case, samples: Sequence[Sample]) -> list[Summary]:
    found = []
    for contender in case.contenders:
        own = [s for s in _of_case(case, samples) if s.contender == contender.name]
        metrics = dict.fromkeys(name for sample in own for name in sample.figures)
        figures = {
            name: Spread.of(s.figures[name] for s in own if name in s.figures) for name in metrics
        }
        errors = [sample.error for sample in own if sample.error]
        found.append(
            Summary(
                contender.name,
                own[0].command if own else contender.command,
                figures,
                errors[0] if errors else "",
            )
        )
    return found


def judge(case: Case, samples: Sequence[Sample]) -> list[Verdict]:
    return [_judge(target, _of_case(case, samples)) for target in case.targets]


def bandwidth(case: Case, samples: Sequence[Sample]) -> Spread | None:
    """What the memory delivered in the minutes of the case."""
    found = [s.figures[BANDWIDTH] for s in _of_case(case, samples) if BANDWIDTH in s.figures]
    return Spread.of(found) if found else None


def _of_case(case: Case, samples: Sequence[Sample]) -> list[Sample]:
    return [s for s in samples if (s.section, s.case) == (case.section, case.name)]


def _judge(target: Target, samples: Sequence[Sample]) -> Verdict:
    ours, our_values = _best(target, target.ours, samples)
    theirs, their_values = _best(target, target.against, samples)
    if target.against:
        rounds = sorted(our_values.keys() & their_values.keys())
        results = [our_values[index] / their_values[index] for index in rounds]
    else:
        results = list(our_values.values())
    return Verdict(
        target,
        ours,
        theirs,
        _spread(our_values),
        _spread(their_values),
        Spread.of(results) if results else None,
        _lacking(target, samples),
    )


def _lacking(target: Target, samples: Sequence[Sample]) -> tuple[str, ...]:
    measured = {s.contender for s in samples if target.metric in s.figures}
    return tuple(name for name in target.against if name not in measured)


def _best(
    target: Target, names: Sequence[str], samples: Sequence[Sample]
) -> tuple[str, dict[int, float]]:
    """The contender with the best median and its value by round; all names and {} without any."""
    choose = max if target.kind == "at least" else min
    by_name: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample.contender in names and target.metric in sample.figures:
            values = by_name.setdefault(sample.contender, {})
            values[sample.round] = sample.figures[target.metric]
    if not by_name:
        return " or ".join(names), {}
    name = choose(by_name, key=lambda each: median(by_name[each].values()))
    return name, by_name[name]


def _spread(values: dict[int, float]) -> Spread | None:
    return Spread.of(values.values()) if values else None
