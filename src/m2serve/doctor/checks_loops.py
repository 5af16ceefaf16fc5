"""Does it go round in circles: sampled as the model's card says, and greedy, short and long?"""

from __future__ import annotations

import secrets
from typing import Any

from m2serve.doctor.checks_answer import refused
from m2serve.doctor.garbling import find_garbling
from m2serve.doctor.probe import Probe
from m2serve.doctor.questions import LIST, summary_question
from m2serve.doctor.repetition import find_repetition
from m2serve.doctor.result import Check, CheckResult, shown
from m2serve.doctor.target import CARD_SAMPLING, GREEDY, Target

LONG_WORDS = 6000
# A word is at most this many tokens of the smallest tokenizer, so the text stays within half of
# the context.
_WORDS_A_CONTEXT = 16


async def loops_short(probe: Probe, target: Target) -> CheckResult:
    """A list, sampled."""
    check = target.check("loops_short", f"{LIST} (temperature 1, top_p 0.95, top_k 40)")
    return await _look(probe, check, target.body(LIST, 3072, **CARD_SAMPLING))


async def loops_short_greedy(probe: Probe, target: Target) -> CheckResult:
    """A list, greedy."""
    check = target.check("loops_short_greedy", f"{LIST} (greedy)")
    return await _look(probe, check, target.body(LIST, 3072, **GREEDY))


async def loops_long(probe: Probe, target: Target) -> CheckResult:
    """A question behind a long text, sampled."""
    question = summary_question(num_long_words(target), secrets.randbelow(10**6))
    check = target.check("loops_long", f"{shown(question)} (temperature 1, top_p 0.95, top_k 40)")
    return await _look(probe, check, target.body(question, 2048, **CARD_SAMPLING))


async def loops_long_greedy(probe: Probe, target: Target) -> CheckResult:
    """A question behind a long text, greedy."""
    question = summary_question(num_long_words(target), 0)
    check = target.check("loops_long_greedy", f"{shown(question)} (greedy)")
    return await _look(probe, check, target.body(question, 2048, **GREEDY))


def num_long_words(target: Target) -> int:
    """Words of a long text that surely fits the context."""
    if not target.max_model_len:
        return LONG_WORDS
    return min(LONG_WORDS, target.max_model_len // _WORDS_A_CONTEXT)


async def _look(probe: Probe, check: Check, body: dict[str, Any]) -> CheckResult:
    answer = await probe.chat(body)
    if answer.status != 200:
        return refused(check, answer)
    for name, text in (("reasoning", answer.reasoning), ("content", answer.content)):
        if reason := find_garbling(text):
            return check.fail(text[-400:], f"{name} is no language: {reason}", "garbled")
        if found := find_repetition(text):
            detail = f"{name} repeats {shown(found.unit)!r} {found.count} times"
            return check.fail(text[-400:], detail, "loops")
    if answer.finish_reason == "length":
        return check.warn(answer.text[-400:], "no end within the limit, but no circle", "length")
    return check.ok(answer.content, f"{answer.completion_tokens} tokens, then an end")
