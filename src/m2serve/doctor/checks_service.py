"""Does the service keep its promises: JSON, the prefix cache, its limit, a cancelled request?"""

from __future__ import annotations

import asyncio
import json
import secrets
import time

from m2serve.doctor.checks_answer import leaked_marker, refused
from m2serve.doctor.checks_loops import num_long_words
from m2serve.doctor.probe import Probe
from m2serve.doctor.questions import COUNTING, GREETING, JSON_OBJECT, long_text
from m2serve.doctor.result import Check, CheckResult, shown
from m2serve.doctor.target import GREEDY, Target

JSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# No M2 has a longer context; used when the endpoint does not say its own.
LONGEST_CONTEXT = 204_800
CANCEL_AFTER_CHUNKS = 3
CANCEL_DEADLINE_S = 10.0
_POLL_S = 0.2
_LOOKS_AT_REST = 4
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")


async def json_mode(probe: Probe, target: Target) -> CheckResult:
    """response_format with a schema gives that JSON."""
    check = target.check("json_mode", JSON_OBJECT)
    schema = {"name": "person", "schema": JSON_SCHEMA}
    wanted = {"response_format": {"type": "json_schema", "json_schema": schema}}
    answer = await probe.chat(target.body(JSON_OBJECT, 2048, **wanted, **GREEDY))
    if answer.status in (400, 404, 422, 501):
        return check.warn(answer.error, f"not supported here: {answer.error}")
    if answer.status != 200:
        return refused(check, answer)
    if answer.finish_reason == "length":
        return check.warn(answer.text, "the limit came before the end of the JSON", "length")
    if marker := leaked_marker(answer):
        return check.fail(answer.text, f"{marker} stands in the text", "marker-leaks")
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return check.fail(answer.content, "content is no JSON", "json-broken")
    if not isinstance(value, dict) or not isinstance(value.get("age"), int):
        return check.fail(answer.content, "content does not follow the schema", "json-broken")
    return check.ok(answer.content, "JSON as the schema says")


async def prefix_cache(probe: Probe, target: Target) -> CheckResult:
    """A long prompt sent again is not computed again."""
    text = long_text(num_long_words(target), secrets.randbelow(10**6))
    check = target.check("prefix_cache", f"{shown(text)} (twice)")
    body = target.body(f"{text}\n\nSay yes.", 8, **GREEDY)
    cold, warm = await probe.stream(body), await probe.stream(body)
    for answer in (cold, warm):
        if answer.status != 200:
            return refused(check, answer)
    times = f"{cold.ttft_s:.2f} s, then {warm.ttft_s:.2f} s to the first token"
    if warm.cached_tokens * 2 > warm.prompt_tokens > 0:
        detail = f"{warm.cached_tokens} of {warm.prompt_tokens} tokens from the cache; {times}"
        return check.ok(times, detail)
    if warm.cached_tokens < 0 and warm.ttft_s * 2 < cold.ttft_s:
        return check.ok(times, f"faster the second time: {times}")
    counted = "no count" if warm.cached_tokens < 0 else f"{warm.cached_tokens} tokens"
    detail = f"the same prompt was computed twice ({counted} from the cache; {times})"
    return check.warn(times, detail, "no-prefix-cache")


async def context_limit(probe: Probe, target: Target) -> CheckResult:
    """A prompt beyond the context is refused with a 4xx, not an error of the server."""
    length = target.max_model_len or LONGEST_CONTEXT
    check = target.check("context_limit", f"{length + length // 8} words, a token each or more")
    answer = await probe.chat(target.body("word " * (length + length // 8), 8))
    if 400 <= answer.status < 500:
        return check.ok(answer.error, f"refused with {answer.status}")
    if answer.status == 200:
        detail = (
            f"a prompt longer than {length} tokens was answered ({answer.prompt_tokens} tokens "
            "counted): it was cut without a word, or the limit is another"
        )
        return check.warn(answer.content, detail, "truncates")
    return refused(check, answer)


async def cancel(probe: Probe, target: Target) -> CheckResult:
    """Closing a stream ends its request in the engine."""
    check = target.check("cancel", f"{COUNTING} (closed after {CANCEL_AFTER_CHUNKS} pieces)")
    before = await _running_at_rest(probe)
    quick_s = 0.0 if before is not None else await _short_answer_s(probe, target)
    answer = await probe.stream(target.body(COUNTING, 4096), max_chunks=CANCEL_AFTER_CHUNKS)
    if answer.status != 200:
        return refused(check, answer)
    if answer.finish_reason:
        return check.skip("the answer ended before it could be cancelled")
    if before is None:
        return await _by_latency(probe, target, check, quick_s)
    deadline = time.monotonic() + CANCEL_DEADLINE_S
    while (running := await _running(probe)) is not None and running > before:
        if time.monotonic() > deadline:
            detail = f"{running:g} requests still run {CANCEL_DEADLINE_S:g} s after the client left"
            return check.fail(f"{before:g} before, {running:g} after", detail, "cancel-ignored")
        await asyncio.sleep(_POLL_S)
    return check.ok(f"{before:g} requests before and after", "the request ended with its client")


async def _by_latency(probe: Probe, target: Target, check: Check, quick_s: float) -> CheckResult:
    """Without metrics: a request that still runs slows the next one."""
    after_s = await _short_answer_s(probe, target)
    times = f"{quick_s:.2f} s before, {after_s:.2f} s after"
    if after_s > 3 * quick_s + 2:
        detail = f"the next answer was late, as if the cancelled one still ran ({times})"
        return check.warn(times, detail, "cancel-ignored")
    return check.ok(times, "no /metrics to look at; the next answer came in time")


async def _short_answer_s(probe: Probe, target: Target) -> float:
    start = time.perf_counter()
    await probe.stream(target.body(GREETING, 8))
    return time.perf_counter() - start


async def _running_at_rest(probe: Probe) -> float | None:
    """The least of a few looks: an engine may count a request for a moment after its last byte,
    and such a one would hide the cancelled request that runs on."""
    least = await _running(probe)
    for _ in range(_LOOKS_AT_REST - 1):
        if not least:
            break
        await asyncio.sleep(_POLL_S)
        least = min(least, await _running(probe) or 0.0)
    return least


async def _running(probe: Probe) -> float | None:
    """Requests in the engine now, from /metrics; None when it does not tell."""
    reply = await probe.get("/metrics")
    if reply.status != 200:
        return None
    for name in _RUNNING:
        lines = [
            line for line in reply.text.splitlines() if line.startswith((f"{name}{{", f"{name} "))
        ]
        if lines:
            return sum(_last_number(line) for line in lines)
    return None


def _last_number(line: str) -> float:
    try:
        return float(line.rsplit(" ", 1)[-1])
    except ValueError:
        return 0.0
