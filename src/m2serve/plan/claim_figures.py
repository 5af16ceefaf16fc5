"""Reads the figures of a claim out of its text. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from m2serve.errors import UsageError

_MAX_CHARS = 2000
_MAX_VALUE = 1e15
_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
_RATE = r"(?:tok/s|tokens/s|tokens per second|t/s|tps)"
_DEVICE = r"(?:/| per )(?:gpu|device|card|npu)"
_PROMPT = r"\b(?:pp ?[0-9]{3,6}|pp|prefill|prompt processing|prompt|input)(?: throughput)?\b[:=]?"
_TOTAL = r"(?:total token|input ?\+ ?output)(?: throughput)?[:=]?"
# In this order: what a pattern has taken is not read again.
_PATTERNS: Mapping[str, str] = {
    "users": rf"{_NUMBER} ?(?:users?|concurrent|streams|requests)|(?:concurrency|conc) ?{_NUMBER}",
    "prefill": rf"{_PROMPT} ?(?:of |at )?{_NUMBER} ?{_RATE}"
    rf"|{_NUMBER} ?(?:prefill|prompt|input) {_RATE}|{_NUMBER} ?{_RATE} (?:of )?(?:prefill|prompt)",
    # Prompts counted, too: "total" alone is as often the sum over users.
    "total_rate": rf"{_TOTAL} ?(?:of )?{_NUMBER} ?{_RATE}|{_NUMBER} ?total {_RATE}",
    "rate_per_user": rf"{_NUMBER} ?(?:output )?{_RATE}(?:/| per )(?:user|stream|request)",
    "rate_per_device": rf"{_NUMBER} ?(?:output )?{_RATE}{_DEVICE}",
    "rate": rf"{_NUMBER} ?(?:output |decode |generation )?{_RATE}",
    "tpot_ms": rf"tpot:? ?{_NUMBER} ?ms",
    "ttft_ms": rf"ttft:? ?{_NUMBER} ?ms",
    "kv_per_million": rf"{_NUMBER} ?(?:gb|gib) (?:of kv |kv )?per 1m",
    "kv": rf"{_NUMBER} ?(?:gb|gib) (?:of )?kv",
    "per_device": rf"{_NUMBER} ?(?:gb|gib)(?: weights)?{_DEVICE}",
    "bytes": rf"{_NUMBER} ?(?:gb|gib)\b",
    "parameters": rf"{_NUMBER} ?b(?:illion)? (?:total )?(?:param|total)",
    "context": rf"{_NUMBER} ?(k|m)?(?: tokens?)?(?: of)? context",
}
_ONE_STREAM = re.compile(r"\btg ?[0-9]|single[- ](?:stream|user)")
_CONTEXT_UNITS = {"k": 1024, "m": 1 << 20}


def read_figures(text: str) -> dict[str, tuple[float, ...]]:
    """Every figure by the names of _PATTERNS, in the order of the text; UsageError for a text that
    is too long and for a figure that is none ("0 tok/s")."""
    if len(text) > _MAX_CHARS:
        raise UsageError(f"the claim has {len(text)} characters; {_MAX_CHARS} are read at most")
    left = text.lower()
    found: dict[str, tuple[float, ...]] = {}
    for name, pattern in _PATTERNS.items():
        values = tuple(_value(match, name) for match in re.finditer(pattern, left))
        if values:
            found[name] = values
            left = re.sub(pattern, " | ", left)
    return found


def claimed_users(text: str) -> int | None:
    """How many users a claim is about, where it says so; "tg32" is llama-bench's word for one."""
    users = read_figures(text).get("users")
    if users is not None:
        return max(1, round(users[0]))
    return 1 if _ONE_STREAM.search(text.lower()) else None


def _value(match: re.Match[str], name: str) -> float:
    groups = [group for group in match.groups() if group]
    value = float(groups[0].replace(",", "")) * _CONTEXT_UNITS.get(groups[-1], 1)
    if not 0 < value < _MAX_VALUE:
        raise UsageError(f"{match[0][:80]!r} is no figure to judge as {name.replace('_', ' ')}")
    return value
