"""Holds a published or measured figure against the exact sizes, the roofline and the forecast.

A size is right or wrong: bytes, parameters and context follow from the checkpoint. A speed is
impossible when it beats the bytes a step must read at the full bandwidth, suspicious when it is
better than the forecast's interval by as much again or contradicts itself, slow when a known issue
is the likelier explanation, else plausible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from m2serve.errors import UsageError
from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.memory import kv_bytes_per_token
from m2serve.records import Plan
from m2serve.spec.cost import count_parameters

Judgement = Literal["impossible", "suspicious", "plausible", "slow"]
# Published sizes are rounded, and in GB or GiB without saying which.
_SIZE_TOLERANCE, _ROUGH_TOLERANCE = 0.02, 0.05
_KV_TOLERANCE = 0.15
_SLOW_FACTOR = 2.5
_MIN_IN_FLIGHT = 0.6
_MAX_CHARS = 2000
_NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
_PATTERNS = {
    "users": rf"{_NUMBER} ?(?:users|concurrent|streams|requests)|(?:concurrency|conc) ?{_NUMBER}",
    "rate": rf"{_NUMBER} ?(?:output )?(?:tok/s|tokens/s|t/s|tps)",
    "tpot_ms": rf"tpot:? ?{_NUMBER} ?ms",
    "ttft_ms": rf"ttft:? ?{_NUMBER} ?ms",
    "kv_per_million": rf"{_NUMBER} ?(?:gb|gib) (?:of kv |kv )?per 1m",
    "kv": rf"{_NUMBER} ?(?:gb|gib) (?:of )?kv",
    "per_device": rf"{_NUMBER} ?(?:gb|gib)(?: weights)?(?:/| per )(?:gpu|device|card)",
    "bytes": rf"{_NUMBER} ?(?:gb|gib)\b",
    "parameters": rf"{_NUMBER} ?b(?:illion)? (?:total )?(?:param|total)",
    "context": rf"{_NUMBER} ?(k|m)?(?: tokens?)?(?: of)? context",
}


@dataclass(frozen=True)
class Verdict:
    """`figure` as claimed; `reason` holds the right number; `issues` would explain it."""

    figure: str
    judgement: Judgement
    reason: str
    issues: tuple[str, ...] = ()


def judge_claim(text: str, plan: Plan, c: Configuration) -> tuple[Verdict, ...]:
    """One verdict a figure found in `text`; raises UsageError when there is none.

    `plan` and its configuration are for the hardware, checkpoint and workload of the claim.
    """
    found = read_figures(text)
    if not found.keys() - {"users"}:
        raise UsageError(
            f"{text!r} holds no figure to judge; write for example '64 users, 3355 tok/s', "
            "'TPOT 11.4 ms', '115 GB', '60 GB per 1M tokens', '1M context' or '456B parameters'"
        )
    return (*_sizes(found, plan, c), *_speeds(found, plan, c))


def claimed_users(text: str) -> int | None:
    """How many users a claim is about, where it says so."""
    users = read_figures(text).get("users")
    return None if users is None else max(1, round(users))


def read_figures(text: str) -> dict[str, float]:
    """Figures by the names of _PATTERNS; a piece of text counts for the first that matches."""
    if len(text) > _MAX_CHARS:
        raise UsageError(f"the claim has {len(text)} characters; {_MAX_CHARS} are read at most")
    left = text.lower()
    found: dict[str, float] = {}
    for name, pattern in _PATTERNS.items():
        match = re.search(pattern, left)
        if match is None:
            continue
        groups = [group for group in match.groups() if group]
        value = float(groups[0].replace(",", ""))
        if name == "context":
            value *= {"k": 1024, "m": 1 << 20}.get(groups[-1], 1)
        found[name] = value
        left = left[: match.start()] + " | " + left[match.end() :]
    return found


# Sizes


def _sizes(found: dict[str, float], plan: Plan, c: Configuration) -> Iterator[Verdict]:
    shape, whole = sizes(c.variant)
    if (value := found.get("bytes")) is not None:
        yield _size(f"{value:g} GB", value, whole.total, f"{c.variant.name} has")
    if (value := found.get("per_device")) is not None:
        exact = max(rank.term("weights") for rank in plan.ranks)
        yield _size(f"{value:g} GB a device", value, exact, "the fullest device holds")
    if (value := found.get("kv_per_million")) is not None:
        each = kv_bytes_per_token(shape, type(c.parallelism)(), shape.num_hidden_layers, "auto")
        yield _size(f"{value:g} GB per 1M tokens", value, each * 10**6, "1M tokens in BF16 take")
    if (value := found.get("kv")) is not None:
        exact = plan.num_replicas * sum(rank.term("kv_cache") for rank in plan.ranks)
        says = "all devices together have for it"
        yield _size(f"{value:g} GB of KV cache", value, exact, says, _KV_TOLERANCE)
    if (value := found.get("parameters")) is not None:
        yield _parameters(value, count_parameters(shape).total, c)
    if (value := found.get("context")) is not None:
        limit = c.variant.max_model_len
        wrong = value > limit
        reason = f"the checkpoint's config allows {limit:,} tokens"
        yield Verdict(
            f"{value:,.0f} tokens of context", "impossible" if wrong else "plausible", reason
        )


def _size(
    figure: str, claimed: float, exact: int, says: str, tolerance: float = _SIZE_TOLERANCE
) -> Verdict:
    right = f"{says} {exact / 1e9:.2f} GB = {exact / 2**30:.2f} GiB"
    off = min(abs(claimed * unit / exact - 1) for unit in (1e9, 2**30))
    if off <= tolerance:
        return Verdict(figure, "plausible", right)
    if off <= max(_ROUGH_TOLERANCE, tolerance):
        return Verdict(figure, "plausible", f"roughly: {right}")
    return Verdict(figure, "impossible", right)


def _parameters(billions: float, exact: int, c: Configuration) -> Verdict:
    is_right = abs(billions * 1e9 / exact - 1) <= _SIZE_TOLERANCE
    reason = f"{c.variant.name} has {exact:,} parameters"
    return Verdict(
        f"{billions:g} billion parameters", "plausible" if is_right else "impossible", reason
    )


# Speeds


def _speeds(found: dict[str, float], plan: Plan, c: Configuration) -> Iterator[Verdict]:
    users = found.get("users", plan.workload.concurrency)
    if (value := found.get("tpot_ms")) is not None:
        yield _speed(f"TPOT {value:g} ms at {users:g} users", value, users, plan, c)
    if (value := found.get("rate")) is not None:
        implied = users * 1000 / value
        yield _speed(f"{value:g} tokens/s at {users:g} users", implied, users, plan, c)
    if (value := found.get("ttft_ms")) is not None:
        yield _first_token(value, plan)
    if {"rate", "tpot_ms", "ttft_ms"} <= found.keys():
        yield from _by_little(found, users, plan)


def roofline_ms(c: Configuration, users: float) -> float:
    """The least time of a decode step: its weights once, at the devices' full bandwidth, with
    independent routing; the KV cache is not counted."""
    shape, whole = sizes(c.held)
    users = users / c.num_replicas
    untouched = (1 - shape.num_experts_per_tok / c.held.num_experts) ** users
    read = whole.experts * (1 - untouched) + whole.attention + whole.lm_head
    bandwidth = sum(device.bandwidth_gb_per_s for device in c.devices) * 1e6
    return read / bandwidth


def _speed(figure: str, tpot: float, users: float, plan: Plan, c: Configuration) -> Verdict:
    forecast = plan.speed.tpot_ms
    least = roofline_ms(c, users)
    said = f"the forecast is {forecast.value:.1f} ms ({forecast.low:.1f} to {forecast.high:.1f})"
    if tpot < least:
        reason = (
            f"{tpot:.1f} ms a token, but the weights that {users:g} different answers touch take "
            f"{least:.1f} ms at the full bandwidth; identical or degenerate answers may share them"
        )
        return Verdict(figure, "impossible", reason, ("K91",))
    if tpot < forecast.low**2 / forecast.value:
        return Verdict(figure, "suspicious", f"{tpot:.1f} ms a token; {said}", ("K91",))
    if tpot > _SLOW_FACTOR * forecast.value:
        return Verdict(figure, "slow", f"{tpot:.1f} ms a token; {said}", ("K80",))
    return Verdict(figure, "plausible", f"{tpot:.1f} ms a token; {said}")


def _first_token(ttft: float, plan: Plan) -> Verdict:
    forecast = plan.speed.ttft_ms
    said = f"the forecast is {forecast.value:.0f} ms ({forecast.low:.0f} to {forecast.high:.0f})"
    figure = f"TTFT {ttft:g} ms"
    if ttft < forecast.low**2 / forecast.value / 2:
        return Verdict(figure, "suspicious", f"{said}; cached prompts look like this", ("K91",))
    judgement: Judgement = "slow" if ttft > _SLOW_FACTOR * forecast.high else "plausible"
    return Verdict(figure, judgement, said)


def _by_little(found: dict[str, float], users: float, plan: Plan) -> Iterator[Verdict]:
    """Requests in flight = rate of requests x time of one (Little's law)."""
    output_len = plan.workload.output_len
    one_s = (found["ttft_ms"] + (output_len - 1) * found["tpot_ms"]) / 1000
    in_flight = found["rate"] / output_len * one_s
    if math.isfinite(in_flight) and in_flight < _MIN_IN_FLIGHT * users:
        reason = f"these figures belong to {in_flight:.0f} requests in flight, not {users:g}"
        yield Verdict("throughput, TPOT and TTFT together", "suspicious", reason)
