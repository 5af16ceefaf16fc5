"""Reading logs of any length and any kind."""

import io

import pytest

from m2serve.doctor.log import explain_log, read_log
from m2serve.spec.known_issues import find_issue
from m2serve.spec.log_patterns import MAX_LINE_CHARS

OOM = find_issue("K111").example_log
NOTE = find_issue("K56").example_log


class Slowly(io.RawIOBase):
    """Gives a few bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self._size if size < 0 else min(size, self._size)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def test_an_explanation_names_line_cause_fix_and_source() -> None:
    [explanation] = explain_log(f"fine\n{OOM}\n")
    issue = find_issue("K111")
    text = str(explanation)
    assert text.startswith("K111")
    for part in ("line 2", issue.title, issue.cause, issue.fix, issue.reference):
        assert part in text
    assert explain_log("") == ()
    assert explain_log("all is well\n") == ()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 20])
def test_pieces_make_no_difference(size: int) -> None:
    log = f"erste Zeile ü\n\n{OOM}\r\n十\n{NOTE}".encode()
    report = read_log(Slowly(log, size))
    found = [(match.issue.id, match.line_number) for match in report.matches]
    assert found == [("K111", 3), ("K56", 5)]
    assert (report.num_lines, report.is_cut) == (5, False)


def test_an_endless_line_costs_no_memory_and_counts_as_one() -> None:
    log = b"x" * 5_000_000 + b"\n" + OOM.encode() + b"\n"
    report = read_log(io.BytesIO(log))
    [match] = report.matches
    assert match.line_number == 2
    late = b"x" * MAX_LINE_CHARS + OOM.encode()
    assert read_log(io.BytesIO(late)).matches == ()


def test_no_text_at_all() -> None:
    report = read_log(io.BytesIO(bytes(range(256)) * 1000))
    assert report.matches == ()
    assert read_log(io.BytesIO(b"")).num_lines == 0


def test_a_log_beyond_the_limit_is_cut_and_says_so() -> None:
    log = f"{OOM}\n{'fine' * 10}\n{NOTE}\n".encode()
    report = read_log(io.BytesIO(log), max_bytes=len(OOM) + 10)
    assert report.is_cut
    assert [match.issue.id for match in report.matches] == ["K111"]
    assert not read_log(io.BytesIO(log), max_bytes=len(log)).is_cut


def test_a_note_is_no_failure() -> None:
    assert not read_log(io.BytesIO(NOTE.encode())).has_failed
    assert read_log(io.BytesIO(OOM.encode())).has_failed
