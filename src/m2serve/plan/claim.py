"""Holds a published or measured figure against the exact sizes, the roofline and the forecast.

A size is right or wrong: bytes, parameters and context follow from the checkpoint. A speed is
impossible when it beats the bytes a step must read at the full bandwidth (or, of a prompt, the
products it takes at the full arithmetic), suspicious when it is better than the forecast's interval
by as much again or contradicts itself, slow when a known issue is the likelier explanation, else
plausible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from m2serve.errors import UsageError
from m2serve.plan.claim_figures import read_figures
from m2serve.plan.configuration import Configuration, sizes
from m2serve.plan.issues import open_issues
from m2serve.plan.memory import kv_bytes_per_token
from m2serve.plan.settings import bare_settings
from m2serve.plan.speed_model import model_flops
from m2serve.records import Plan
from m2serve.spec.cost import count_parameters
from m2serve.spec.units import GIB
from m2serve.spec.variants import Variant

Judgement = Literal["impossible", "suspicious", "plausible", "slow"]
# Published sizes are rounded, and in GB or GiB without saying which.
_SIZE_TOLERANCE, _ROUGH_TOLERANCE = 0.02, 0.05
_KV_TOLERANCE = 0.15
_SLOW_FACTOR = 2.5
_MIN_IN_FLIGHT = 0.6
_HARDLY_REACHED = 0.7  # of the arithmetic, by real prefill
_DEGENERATE, _EAGER = "K91", "K80"

Figures = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Verdict:
    """`figure` as claimed; `reason` holds the right number; `issues` would explain it."""

    figure: str
    judgement: Judgement
    reason: str
    issues: tuple[str, ...] = ()


def judge_claim(
    text: str, plan: Plan, c: Configuration, family: Sequence[Variant] = ()
) -> tuple[Verdict, ...]:
    """One verdict a figure found in `text`; raises UsageError when there is none.

    `plan` and its configuration are for the hardware, checkpoint and workload of the claim;
    `family` are the checkpoints it may be about where it names none, the release itself first.
    """
    found = read_figures(text)
    if not found.keys() - {"users"}:
        raise UsageError(
            f"{text!r} holds no figure to judge; write for example '64 users, 3355 tok/s', "
            "'TPOT 11.4 ms', '115 GB', '60 GB per 1M tokens', '1M context' or '456B parameters'"
        )
    return (*_sizes(found, plan, c, family or (c.variant,)), *_speeds(found, plan, c))


# Sizes


def _sizes(
    found: Figures, plan: Plan, c: Configuration, family: Sequence[Variant]
) -> Iterator[Verdict]:
    shape, _ = sizes(c.variant)
    for value in found.get("bytes", ()):
        yield _checkpoint_size(value, family)
    for value in found.get("per_device", ()):
        exact = max(rank.term("weights") for rank in plan.ranks)
        yield _size(f"{value:g} GB a device", value, exact, "the fullest device holds")
    for value in found.get("kv_per_million", ()):
        each = kv_bytes_per_token(shape, type(c.parallelism)(), shape.num_hidden_layers, "auto")
        yield _size(f"{value:g} GB per 1M tokens", value, each * 10**6, "1M tokens in BF16 take")
    for value in found.get("kv", ()):
        exact = plan.num_replicas * sum(rank.term("kv_cache") for rank in plan.ranks)
        says = "all devices together have for it"
        yield _size(f"{value:g} GB of KV cache", value, exact, says, _KV_TOLERANCE)
    for value in found.get("parameters", ()):
        yield _parameters(value, count_parameters(shape).total, c)
    for value in found.get("context", ()):
        limit = c.variant.max_model_len
        reason = f"the checkpoint's config allows {limit:,} tokens"
        judgement: Judgement = "impossible" if value > limit else "plausible"
        yield Verdict(f"{value:,.0f} tokens of context", judgement, reason)


def _checkpoint_size(claimed: float, family: Sequence[Variant]) -> Verdict:
    """Of the checkpoint whose size is the nearest; a wrong claim is told the first one's size."""
    of_each = [(_distance(claimed, sizes(variant)[1].total), variant) for variant in family]
    off, nearest = min(of_each, key=lambda entry: entry[0])
    told = nearest if off <= _ROUGH_TOLERANCE else family[0]
    says = f"{told.name} has"
    if len(family) > 1:
        says = f"of {len(family)} checkpoints {says}"
    return _size(f"{claimed:g} GB", claimed, sizes(told)[1].total, says)


def _distance(claimed: float, exact: int) -> float:
    """Relative, in GB or GiB, whichever is nearer: published figures do not say which."""
    return min(abs(claimed * unit / exact - 1) for unit in (1e9, GIB))


def _size(
    figure: str, claimed: float, exact: int, says: str, tolerance: float = _SIZE_TOLERANCE
) -> Verdict:
    right = f"{says} {exact / 1e9:.2f} GB = {exact / GIB:.2f} GiB"
    off = _distance(claimed, exact)
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


def _speeds(found: Figures, plan: Plan, c: Configuration) -> Iterator[Verdict]:
    users = found.get("users", (float(plan.workload.concurrency),))[0]
    for value in found.get("tpot_ms", ()):
        yield _speed(f"TPOT {value:g} ms at {users:g} users", value, users, plan, c)
    for said, rate in _output_rates(found, users, plan, c):
        yield _speed(f"{said} at {users:g} users", users * 1000 / rate, users, plan, c)
    for value in found.get("prefill", ()):
        yield _prefill(value, plan, c)
    for value in found.get("ttft_ms", ()):
        yield _first_token(value, plan)
    if {"rate", "tpot_ms", "ttft_ms"} <= found.keys():
        yield from _by_little(found, users, plan)


def _output_rates(
    found: Figures, users: float, plan: Plan, c: Configuration
) -> Iterator[tuple[str, float]]:
    """Claims of a rate, and the output tokens a second of all devices that each means."""
    load = plan.workload
    for value in found.get("rate", ()):
        yield f"{value:g} tokens/s", value
    for value in found.get("rate_per_user", ()):
        yield f"{value:g} tokens/s a user", value * users
    for value in found.get("rate_per_device", ()):
        yield f"{value:g} tokens/s a device", value * len(c.machine.devices)
    for value in found.get("total_rate", ()):
        share = load.output_len / (load.input_len + load.output_len)
        said = f"{value:g} tokens/s of {load.input_len} in and {load.output_len} out together"
        yield said, value * share


def _prefill(rate: float, plan: Plan, c: Configuration) -> Verdict:
    """Prompt tokens a second against the devices' dense arithmetic; cached ones cost nothing."""
    figure = f"{rate:g} prompt tokens/s"
    peak = sum(max(d.bf16_tflops, d.fp8_tflops, d.fp4_tflops) for d in c.machine.devices) * 1e12
    if not peak:
        return Verdict(figure, "plausible", "the arithmetic of these devices is not known")
    most = peak / (model_flops(c.shape)[0] * (1 - plan.workload.prefix_hit) or 1.0)
    reason = f"at the full arithmetic of all devices {most:,.0f} a second could be computed"
    if rate > most:
        return Verdict(figure, "impossible", f"{reason}; cached prompts look like this")
    if rate > _HARDLY_REACHED * most:
        return Verdict(figure, "suspicious", f"{reason}, and prefill reaches a part of it")
    return Verdict(figure, "plausible", reason)


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
        return Verdict(figure, "impossible", reason, (_DEGENERATE,))
    if tpot < forecast.low**2 / forecast.value:
        return Verdict(figure, "suspicious", f"{tpot:.1f} ms a token; {said}", (_DEGENERATE,))
    if tpot > _SLOW_FACTOR * forecast.value:
        return Verdict(figure, "slow", f"{tpot:.1f} ms a token; {said}", _slow_issues(plan, c))
    return Verdict(figure, "plausible", f"{tpot:.1f} ms a token; {said}")


def _slow_issues(plan: Plan, c: Configuration) -> tuple[str, ...]:
    """What slows this hardware and engine where nothing is done about it; then eager mode, which is
    the usual reason anywhere."""
    without = open_issues(c, bare_settings(c), plan.workload)
    slow = [issue.id for issue in without if "slow" in issue.symptoms or issue.effect == "slow"]
    return tuple(dict.fromkeys((*slow, _EAGER)))


def _first_token(ttft: float, plan: Plan) -> Verdict:
    forecast = plan.speed.ttft_ms
    said = f"the forecast is {forecast.value:.0f} ms ({forecast.low:.0f} to {forecast.high:.0f})"
    figure = f"TTFT {ttft:g} ms"
    if ttft < forecast.low**2 / forecast.value / 2:
        return Verdict(
            figure, "suspicious", f"{said}; cached prompts look like this", (_DEGENERATE,)
        )
    judgement: Judgement = "slow" if ttft > _SLOW_FACTOR * forecast.high else "plausible"
    return Verdict(figure, judgement, said)


def _by_little(found: Figures, users: float, plan: Plan) -> Iterator[Verdict]:
    """Requests in flight = rate of requests x time of one (Little's law)."""
    output_len = plan.workload.output_len
    rate, tpot, ttft = (found[name][0] for name in ("rate", "tpot_ms", "ttft_ms"))
    in_flight = rate / output_len * (ttft + (output_len - 1) * tpot) / 1000
    if math.isfinite(in_flight) and in_flight < _MIN_IN_FLIGHT * users:
        reason = f"these figures belong to {in_flight:.0f} requests in flight, not {users:g}"
        yield Verdict("throughput, TPOT and TTFT together", "suspicious", reason)
