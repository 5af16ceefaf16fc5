"""What a log shows: the known issues whose signs stand in it. No torch.

Any log is read in pieces of bounded size, so its length and its longest line cost no memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from m2serve.doctor.log_situation import SituationFinder
from m2serve.spec.known_issues import KnownIssue, LogMatch, issues_for, issues_in_log
from m2serve.spec.log_patterns import MAX_LINE_CHARS, plain_line
from m2serve.spec.situation import Situation

MAX_LOG_BYTES = 1024 * 1024 * 1024
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Explanation:
    """A known issue in a log; printed, it is one paragraph."""

    match: LogMatch

    def __str__(self) -> str:
        issue = self.match.issue
        return (
            f"{issue.id}: {issue.title} (line {self.match.line_number}). {issue.cause} "
            f"To do: {issue.fix} [{issue.reference}]"
        )


@dataclass(frozen=True)
class LogReport:
    """`situation` is what the log says of the deployment, `certain` the issues that follow from it
    whether they show or not. `is_cut`: the log is longer than the limit and its rest was not read.
    """

    num_lines: int
    matches: tuple[LogMatch, ...]
    situation: Situation
    certain: tuple[KnownIssue, ...]
    is_cut: bool

    @property
    def has_failed(self) -> bool:
        """Whether something in it is more than a note."""
        return any(match.issue.effect != "note" for match in self.matches)


def explain_log(text: str) -> tuple[Explanation, ...]:
    """The known issues in a piece of a log, such as its end, in the log's order."""
    return tuple(Explanation(match) for match in issues_in_log(text.splitlines()))


def read_log(stream: IO[bytes], max_bytes: int = MAX_LOG_BYTES) -> LogReport:
    """Read a log to its end or to `max_bytes`; bytes that are no UTF-8 are replaced."""
    reader, finder = _Reader(stream, max_bytes), SituationFinder()
    matches = issues_in_log(_watched(reader.lines(), finder))
    shown = {match.issue.id for match in matches}
    certain = tuple(issue for issue in issues_for(finder.situation) if issue.id not in shown)
    return LogReport(reader.num_lines, matches, finder.situation, certain, reader.is_cut)


def _watched(lines: Iterator[str], finder: SituationFinder) -> Iterator[str]:
    for line in lines:
        finder.look(plain_line(line))
        yield line


class _Reader:
    """Lines of a stream, each cut to MAX_LINE_CHARS; the number of them stays right."""

    def __init__(self, stream: IO[bytes], max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes
        self.num_lines = 0
        self.is_cut = False

    def lines(self) -> Iterator[str]:
        line = ""
        for text in self._texts():
            *ended, rest = text.split("\n")
            for part in ended:
                self.num_lines += 1
                yield _joined(line, part)
                line = ""
            line = _joined(line, rest)
        if line:
            self.num_lines += 1
            yield line

    def _texts(self) -> Iterator[str]:
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        while self._left > 0:
            piece = self._stream.read(min(_PIECE_BYTES, self._left))
            if not piece:
                return
            self._left -= len(piece)
            yield decode(piece)
        self.is_cut = bool(self._stream.read(1))


def _joined(line: str, part: str) -> str:
    return line + part[: MAX_LINE_CHARS - len(line)]
