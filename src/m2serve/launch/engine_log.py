"""What the log of an engine says of its loading and of its end. Pure."""

from __future__ import annotations

import re

MAX_LINES = 24
MAX_LINE_CHARS = 400

# vLLM's "Loading safetensors checkpoint shards:  50% Completed | 2/4", SGLang's "Multi-thread
# loading shards:  50%|#####     | 2/4 [00:01<00:01]".
_SHARDS = re.compile(r"oading [^:]{0,60}shards:\s{0,4}(\d{1,3})%")
_ERROR = re.compile(r"(?:Error|Exception)\b|[Kk]illed|out of memory|error:")


def loaded_fraction(line: str) -> float | None:
    """0 to 1; None for a line that does not tell."""
    match = _SHARDS.search(line[:500])
    return None if match is None else min(int(match[1]), 100) / 100


def telling_lines(text: str) -> list[str]:
    """Lines that name an error, each once with the line before it; without any, the last lines."""
    lines = [line[:MAX_LINE_CHARS] for line in text.splitlines() if line.strip()]
    chosen: dict[str, None] = {}
    for before, line in zip(["", *lines], lines, strict=False):
        if _ERROR.search(line) and line not in chosen:
            chosen |= dict.fromkeys(one for one in (before, line) if one)
    return list(chosen)[-MAX_LINES:] or lines[-MAX_LINES:]
