"""Engine versions and the ranges conditions are written in. No torch.

Releases order as numbers do, `dev < a < b < rc < release < post` within one release; "nightly",
"latest" and "main" are newer than every release. A suffix of an image ("-cu130") does not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from m2serve.errors import UsageError

NIGHTLY = ("nightly", "latest", "main", "dev")
MAX_TEXT = 64

_STAGES = {"dev": 0, "a": 1, "b": 2, "rc": 3, "": 4, "post": 5}
_PATTERN = re.compile(
    r"v?(?P<release>[0-9]{1,6}(?:\.[0-9]{1,6}){0,4})"
    r"(?:[.]?(?P<stage>dev|a|b|rc|post)(?P<number>[0-9]{0,6}))?"
    r"(?:[.]dev(?P<dev>[0-9]{1,6}))?"
    r"(?:[-+][0-9a-z._-]{1,40})?"
)


@dataclass(frozen=True, order=True)
class Version:
    """Compares by its key; `text` is as given. `Version.parse("0.16.1rc1")`."""

    key: tuple[int, tuple[int, ...], int, int, int]
    text: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Version:
        """Raises UsageError for a text that is no version."""
        plain = text.strip().lower()
        head = plain.partition("-")[0]
        if head in NIGHTLY:
            return cls((1, (), 0, 0, 0), text)
        match = _PATTERN.fullmatch(plain) if len(plain) <= MAX_TEXT else None
        if match is None:
            raise UsageError(f"version {text[:MAX_TEXT]!r} is none; write 0.20.2 or nightly")
        release = [int(part) for part in match["release"].split(".")]
        while len(release) > 1 and release[-1] == 0:
            release.pop()
        stage, number = _STAGES[match["stage"] or ""], int(match["number"] or 0)
        dev = int(match["dev"]) if match["dev"] else 1 << 30
        return cls((0, tuple(release), stage, number, dev), text)

    def __str__(self) -> str:
        return self.text


def is_within(version: str, ranges: str) -> bool:
    """Whether every comma-separated bound holds: ">=0.15,<0.17", "<=0.11.0", "==0.21.0".

    An empty `version` (unknown) is within no range but the empty one; UsageError for a bad bound.
    """
    bounds = [_bound(part) for part in ranges.split(",") if part.strip()]
    if not bounds:
        return True
    if not version.strip():
        return False
    own = Version.parse(version)
    return all(_holds(own, operator, limit) for operator, limit in bounds)


def _bound(part: str) -> tuple[str, Version]:
    for operator in (">=", "<=", "==", "!=", ">", "<"):
        if part.strip().startswith(operator):
            return operator, Version.parse(part.strip().removeprefix(operator))
    raise UsageError(
        f"version bound {part.strip()!r} needs one of >= <= == != > < before a version"
    )


def _holds(own: Version, operator: str, limit: Version) -> bool:
    match operator:
        case ">=":
            return own >= limit
        case "<=":
            return own <= limit
        case "==":
            return own == limit
        case "!=":
            return own != limit
        case ">":
            return own > limit
    return own < limit
