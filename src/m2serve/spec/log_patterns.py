"""Signs of a known issue in a log: pieces of text in their order on one line. Pure, no torch.

"weight = ... is not divisible by" is two pieces. Case does not count. A search is linear in the
line, which is cut at MAX_LINE_CHARS, so no log can make it slow.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.errors import M2Error

MAX_LINE_CHARS = 4000
MIN_PIECE_CHARS = 4

_GAP = " ... "
_ESCAPE = "\x1b["


@dataclass(frozen=True)
class LogPattern:
    """`pieces` are in lower case."""

    pieces: tuple[str, ...]

    def matches(self, line: str) -> bool:
        """Whether the pieces stand in `line`, which is in lower case, one behind the other."""
        at = 0
        for piece in self.pieces:
            at = line.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return True


def read_pattern(text: str, place: str) -> LogPattern:
    """M2Error when a piece is too short to say anything or can stand on no line."""
    pieces = tuple(piece.lower() for piece in text.split(_GAP))
    for piece in pieces:
        if len(piece.strip()) < MIN_PIECE_CHARS or "\n" in piece:
            raise M2Error(
                f"{place}: {piece!r} in {text!r} is not at least {MIN_PIECE_CHARS} characters of "
                "one line"
            )
    return LogPattern(pieces)


def plain_line(line: str) -> str:
    """A line of a log cut to MAX_LINE_CHARS, without colours and other control characters."""
    line = line[:MAX_LINE_CHARS]
    if _ESCAPE in line:
        first, *rest = line.split(_ESCAPE)
        line = first + "".join(_after_colour(part) for part in rest)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else " " for c in line).rstrip()


def _after_colour(part: str) -> str:
    """What follows an escape sequence: its digits, semicolons and closing letter are dropped."""
    rest = part.lstrip("0123456789;?")
    return rest[1:]
