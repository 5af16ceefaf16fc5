"""Does it answer, stop, and keep its thinking apart? Each check is one function."""

from __future__ import annotations

from m2serve.doctor.answer import Answer
from m2serve.doctor.garbling import find_garbling
from m2serve.doctor.probe import Probe
from m2serve.doctor.questions import ARITHMETIC, EXPLAIN, GREETING
from m2serve.doctor.repetition import find_repetition
from m2serve.doctor.result import Check, CheckResult
from m2serve.doctor.target import GREEDY, Target

THINK_START, THINK_END = "<think>", "</think>"
MARKERS = (
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    "<tool_calls>",
    "]~b]",
    "]~!b[",
    "[e~[",
)


def refused(check: Check, answer: Answer) -> CheckResult:
    """The result for an answer that is none."""
    if answer.status == 0:
        return check.fail(answer.error, f"no answer: {answer.error}", "fails")
    # What a 4xx refuses is in its own sentence; no known issue explains it better.
    symptoms = ("error-500",) if answer.status >= 500 else ()
    return check.fail(answer.error, f"answered {answer.status}: {answer.error}", *symptoms)


def leaked_marker(answer: Answer) -> str:
    """A mark of M2's format that stands in text where it must not, or ""."""
    return next((marker for marker in MARKERS if marker in answer.text), "")


async def generates(probe: Probe, target: Target) -> CheckResult:
    """It answers a plain question at its own sampling."""
    check = target.check("generates", ARITHMETIC)
    answer = await probe.chat(target.body(ARITHMETIC, 2048))
    if answer.status != 200:
        return refused(check, answer)
    if not answer.text:
        return check.fail("", "the answer is empty", "empty")
    if not answer.content.strip():
        detail = f"content is empty (finish_reason {answer.finish_reason!r}); all is thinking"
        return check.warn(answer.reasoning, detail, "empty", "length")
    if "42" not in answer.text:
        return check.warn(answer.content, "the answer to 17 + 25 is not 42", "garbled")
    return check.ok(answer.content, f"answered in {answer.ttft_s:.1f} s")


async def reasoning(probe: Probe, target: Target) -> CheckResult:
    """Thinking comes in a field of its own, and neither field holds tags."""
    check = target.check("reasoning", EXPLAIN)
    answer = await probe.chat(target.body(EXPLAIN, 2048))
    if answer.status != 200:
        return refused(check, answer)
    if marker := leaked_marker(answer):
        detail = f"{marker} stands in the text; no parser took it out"
        return check.fail(answer.text, detail, "marker-leaks")
    starts, ends = answer.content.count(THINK_START), answer.content.count(THINK_END)
    if starts != ends:
        detail = f"content holds {starts} {THINK_START} and {ends} {THINK_END}"
        return check.fail(answer.content, detail, "think-in-content")
    if starts:
        detail = f"content holds the thinking between {THINK_START} and {THINK_END}"
        return check.warn(answer.content, detail, "think-in-content")
    if THINK_START in answer.reasoning or THINK_END in answer.reasoning:
        detail = "the reasoning field holds think tags"
        return check.warn(answer.reasoning, detail, "think-in-reasoning")
    if not answer.reasoning.strip():
        detail = (
            "there is no thinking: M2 always thinks, so it was dropped or this is another model"
        )
        return check.warn(answer.content, detail, "reasoning-lost")
    if not answer.content.strip():
        return check.warn(answer.reasoning, "content is empty; all is thinking", "empty", "length")
    detail = f"{len(answer.reasoning)} characters of thinking, {len(answer.content)} of content"
    return check.ok(answer.content, detail)


async def stops(probe: Probe, target: Target) -> CheckResult:
    """A short answer ends by itself."""
    check = target.check("stops", GREETING)
    answer = await probe.chat(target.body(GREETING, 2048))
    if answer.status != 200:
        return refused(check, answer)
    if answer.finish_reason == "stop":
        return check.ok(answer.content, f"ended after {answer.completion_tokens} tokens")
    if find_repetition(answer.text):
        return check.fail(answer.text, "a greeting went round in circles", "loops", "length")
    if answer.content.strip():
        detail = f"a greeting did not end by itself (finish_reason {answer.finish_reason!r})"
        return check.fail(answer.text, detail, "length", "loops")
    return check.warn(answer.text, "thinking about a greeting took all tokens", "length")


async def garbled(probe: Probe, target: Target) -> CheckResult:
    """A greedy answer in plain English is language."""
    check = target.check("garbled", f"{EXPLAIN} (greedy)")
    answer = await probe.chat(target.body(EXPLAIN, 2048, **GREEDY))
    if answer.status != 200:
        return refused(check, answer)
    if not answer.text and answer.completion_tokens > 0:
        detail = f"{answer.completion_tokens} tokens were generated and none is text"
        return check.fail("", detail, "garbled", "empty")
    for name, text in (("reasoning", answer.reasoning), ("content", answer.content)):
        if reason := find_garbling(text):
            return check.fail(text, f"{name} is no language: {reason}", "garbled")
    return check.ok(answer.content or answer.reasoning, "reads as language")
