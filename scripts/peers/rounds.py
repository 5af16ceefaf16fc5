"""Interleaved rounds: every contender once, then all again. Samples are written as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from scripts.peers.figures import Figures
from scripts.peers.processes import Contender, Failed, busy_cores


@dataclass(frozen=True)
class Target:
    """`metric` of the best of `ours`, over that of the best of `against` if any, and its limit."""

    metric: str
    ours: tuple[str, ...]
    against: tuple[str, ...]
    limit: float
    kind: Literal["at least", "at most"] = "at least"


@dataclass(frozen=True)
class Case:
    """Contenders measured side by side, and what they are held against.

    `also` are metrics without a target that are kept as rows.
    """

    section: str
    name: str
    contenders: tuple[Contender, ...]
    targets: tuple[Target, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One contender in one round; `error` says why there are no figures.

    `others_busy_cores` is what else ran on the machine just before the round.
    """

    section: str
    case: str
    contender: str
    command: str
    round: int
    time: str
    others_busy_cores: float
    figures: Figures
    error: str = ""


def run_case(case: Case, num_rounds: int, file: Path) -> None:
    """Append a sample a contender and round; who fails once sits out the other rounds."""
    with _opened(case, file) as running:
        for index in range(num_rounds):
            busy = busy_cores()
            for contender in list(running):
                sample = _measured(case, contender, index, busy)
                write_sample(file, sample)
                if sample.error:
                    running.remove(contender)


@contextmanager
def _opened(case: Case, file: Path) -> Iterator[list[Contender]]:
    running: list[Contender] = []
    try:
        for contender in case.contenders:
            try:
                running.append(contender)
                contender.open()
            except Failed as failure:
                running.remove(contender)
                write_sample(file, _sample(case, contender, 0, 0.0, {}, str(failure)))
        yield running
    finally:
        for contender in case.contenders:
            contender.close()


def _measured(case: Case, contender: Contender, index: int, busy: float) -> Sample:
    try:
        return _sample(case, contender, index, busy, contender.measure())
    except Failed as failure:
        return _sample(case, contender, index, busy, {}, str(failure))


def _sample(
    case: Case, contender: Contender, index: int, busy: float, figures: Figures, error: str = ""
) -> Sample:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Sample(
        *(case.section, case.name, contender.name, contender.command, index, now),
        *(round(busy, 2), figures, error),
    )


def write_sample(file: Path, sample: Sample) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(asdict(sample)) + "\n")
    shown = sample.error or ", ".join(f"{key} {value:.4g}" for key, value in sample.figures.items())
    print(f"{sample.section} {sample.case} {sample.round}: {sample.contender}: {shown}", flush=True)


def read_samples(file: Path) -> list[Sample]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Sample(**json.loads(line)) for line in lines]
