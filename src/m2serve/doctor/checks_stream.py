"""Is a streamed answer the whole one, piece by piece?"""

from __future__ import annotations

from typing import Any

from m2serve.doctor.answer import Answer
from m2serve.doctor.checks_answer import refused
from m2serve.doctor.checks_tools import broken_arguments
from m2serve.doctor.probe import Probe
from m2serve.doctor.questions import EXPLAIN, WRITE_FILE, WRITE_TOOL
from m2serve.doctor.result import Check, CheckResult, shown
from m2serve.doctor.target import GREEDY, Target

# Arguments longer than this ought to come in more than one piece.
LONG_ARGUMENTS_CHARS = 80


async def stream_equals_whole(probe: Probe, target: Target) -> CheckResult:
    """A plain greedy answer, streamed and whole."""
    check = target.check("stream_equals_whole", f"{EXPLAIN} (greedy, whole and streamed)")
    return await _compare(probe, check, target.body(EXPLAIN, 2048, **GREEDY))


async def stream_equals_whole_tools(probe: Probe, target: Target) -> CheckResult:
    """A greedy tool call, streamed and whole."""
    check = target.check("stream_equals_whole_tools", f"{WRITE_FILE} (greedy, whole and streamed)")
    body = target.body(WRITE_FILE, 4096, tools=[WRITE_TOOL], **GREEDY)
    return await _compare(probe, check, body)


async def _compare(probe: Probe, check: Check, body: dict[str, Any]) -> CheckResult:
    """Whole, whole, streamed: the first two tell whether greedy answers repeat here at all.

    The first request also warms the prefix cache, so the two that are compared run alike.
    """
    first, whole, streamed = (
        await probe.chat(body),
        await probe.chat(body),
        await probe.stream(body),
    )
    for answer in (first, whole, streamed):
        if answer.status != 200:
            return refused(check, answer)
    for call in streamed.calls:
        if broken := broken_arguments(call):
            return check.fail(_form(streamed), f"streamed {broken}", "stream-differs")
        if not call.name:
            return check.fail(_form(streamed), "a streamed call has no name", "stream-differs")
    if difference := _difference(whole, streamed):
        return _judged(check, difference, repeats=not _difference(first, whole), answer=streamed)
    length = sum(len(call.arguments) for call in streamed.calls)
    if length > LONG_ARGUMENTS_CHARS and streamed.num_argument_deltas == 1:
        detail = f"equal, but {length} characters of arguments came in one piece at the end"
        return check.warn(_form(streamed), detail, "stream-bursts")
    return check.ok(_form(streamed), "the pieces make up the whole answer")


def _judged(check: Check, difference: str, *, repeats: bool, answer: Answer) -> CheckResult:
    if repeats or "characters" not in difference:
        return check.fail(
            _form(answer), f"streamed and whole differ: {difference}", "stream-differs"
        )
    detail = f"greedy answers do not repeat here, so nothing can be said: {difference}"
    return check.warn(_form(answer), detail)


def _difference(whole: Answer, streamed: Answer) -> str:
    """The first thing that differs, as text, or "". Differences of mere text say "characters"."""
    if len(whole.calls) != len(streamed.calls):
        return f"{len(streamed.calls)} calls and {len(whole.calls)}"
    if whole.finish_reason != streamed.finish_reason:
        return f"finish_reason {streamed.finish_reason!r} and {whole.finish_reason!r}"
    fields = [
        ("reasoning", whole.reasoning, streamed.reasoning),
        ("content", whole.content, streamed.content),
        *(
            (f"call {number}", f"{one.name}({one.arguments})", f"{other.name}({other.arguments})")
            for number, (one, other) in enumerate(zip(whole.calls, streamed.calls, strict=True))
        ),
    ]
    for name, one, other in fields:
        if bool(one.strip()) != bool(other.strip()):
            return f"{name} is empty in one of them"
        if one != other:
            lengths = f"{len(one)}, {len(other)} characters"
            return f"{name} from number {_common(one, other)} on ({lengths})"
    return _token_difference(whole, streamed)


def _token_difference(whole: Answer, streamed: Answer) -> str:
    for name in ("prompt_tokens", "completion_tokens"):
        one, other = getattr(whole, name), getattr(streamed, name)
        if one != other and min(one, other) >= 0:
            return f"usage says {other} {name} and {one}"
    return ""


def _common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _form(answer: Answer) -> str:
    calls = "; ".join(f"{call.name}({call.arguments})" for call in answer.calls)
    return shown(calls or answer.content or answer.reasoning)
