"""Order of versions and ranges."""

import random

import pytest

from m2serve.errors import UsageError
from m2serve.spec.versions import Version, is_within

ASCENDING = [
    "0.5.4.post1",
    "0.5.8",
    "0.5.9",
    "0.5.10.dev3",
    "0.5.10rc1",
    "0.5.10",
    "0.5.10.post1",
    "0.9",
    "0.11.0",
    "0.11.1rc2.dev10",
    "0.11.1rc2",
    "0.11.1",
    "0.12.0",
    "0.15.1",
    "0.16.0",
    "0.16.1rc1",
    "0.20.2",
    "1.0",
    "nightly",
]


def test_order() -> None:
    shuffled = ASCENDING[:]
    random.Random(7).shuffle(shuffled)
    assert [str(version) for version in sorted(map(Version.parse, shuffled))] == ASCENDING


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.20", "0.20.0"),
        ("v0.16.0", "0.16.0"),
        ("0.19.0-cu130", "0.19.0"),
        ("0.5.9-rocm720", "0.5.9"),
        ("0.32.0+cpu", "0.32.0"),
        ("nightly-5b8c30d62b754b57", "latest"),
        ("dev-cu13", "main"),
    ],
)
def test_the_same_version_in_other_words(one: str, other: str) -> None:
    assert Version.parse(one) == Version.parse(other)


@pytest.mark.parametrize(
    "text", ["", "cf3eacfe", "0.", ".1", "0.1.x", "1" * 100, "0.1rc1rc2", "１"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="version"):
        Version.parse(text)


@pytest.mark.parametrize(
    ("version", "ranges", "expected"),
    [
        ("0.16.0", ">=0.15,<0.17", True),
        ("0.17.0", ">=0.15,<0.17", False),
        ("0.16.1rc1", "<0.16.1", True),
        ("0.21.0", "==0.21", True),
        ("0.21.0", "!=0.21.0", False),
        ("nightly", ">0.33.0", True),
        ("0.11.0", "<=0.11.0", True),
        ("0.11.0", "", True),
        ("", "<1", False),
        ("", "", True),
    ],
)
def test_ranges(version: str, ranges: str, expected: bool) -> None:
    assert is_within(version, ranges) is expected


def test_a_bound_without_an_operator_is_refused() -> None:
    with pytest.raises(UsageError, match=r"0\.17"):
        is_within("0.16", "0.17")
