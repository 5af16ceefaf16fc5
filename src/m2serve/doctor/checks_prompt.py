"""Is the prompt the model's own? The endpoint's token counts say it."""

from __future__ import annotations

from m2serve.doctor.checks_answer import refused
from m2serve.doctor.probe import Probe
from m2serve.doctor.prompt_count import CASES, PUBLISHED_CASE, PUBLISHED_COUNT, PromptCase
from m2serve.doctor.result import Check, CheckResult
from m2serve.doctor.target import GREEDY, Target


async def prompt_tokens(probe: Probe, target: Target) -> CheckResult:
    """Five conversations have as many prompt tokens as M2's template and tokenizer give them.

    Without a tokenizer one of them is compared, with the published tokenizer's count.
    """
    cases = CASES if target.counter else tuple(c for c in CASES if c.name == PUBLISHED_CASE)
    check = target.check("prompt_tokens", ", ".join(case.name for case in cases))
    counts: dict[str, int] = {}
    for case in cases:
        tools = {"tools": list(case.tools)} if case.tools else {}
        answer = await probe.chat(target.body_of(list(case.messages), 1, **GREEDY, **tools))
        if answer.status != 200:
            return refused(check, answer)
        if answer.prompt_tokens < 0:
            return check.skip("the endpoint reports no usage")
        counts[case.name] = answer.prompt_tokens
    if target.counter is None:
        return _published(check, counts[PUBLISHED_CASE])
    expected = {case.name: target.counter.count(case.messages, case.tools) for case in cases}
    return _compared(check, counts, expected)


def _published(check: Check, count: int) -> CheckResult:
    if count == PUBLISHED_COUNT:
        detail = f"{count} tokens, as the published tokenizer and template give"
        return check.ok(str(count), detail)
    detail = (
        f"{count} tokens where the published tokenizer and template give {PUBLISHED_COUNT}; "
        "--tokenizer FOLDER tells more"
    )
    return check.warn(str(count), detail, "prompt-count")


def _compared(check: Check, counts: dict[str, int], expected: dict[str, int]) -> CheckResult:
    wrong = [case for case in CASES if counts[case.name] != expected[case.name]]
    if not wrong:
        return check.ok(_listed(counts), "every prompt has the tokens M2's template gives")
    differences = {counts[name] - expected[name] for name in counts}
    said = "; ".join(_told(case, counts, expected) for case in wrong)
    if differences == {1}:
        return check.fail(
            _listed(counts), "each prompt has one token too many: BOS comes twice", "prompt-count"
        )
    symptoms = ["prompt-count"]
    if [case.name for case in wrong] == ["tool loop"]:
        symptoms.append("reasoning-lost")
    if [case.name for case in wrong] == ["user alone"]:
        return check.warn(_listed(counts), said, *symptoms)
    return check.fail(_listed(counts), said, *symptoms)


def _told(case: PromptCase, counts: dict[str, int], expected: dict[str, int]) -> str:
    return f"{case.name}: {counts[case.name]} tokens, not {expected[case.name]} ({case.tells})"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
