"""All checks in their order, each within its time, and what they add up to. No torch."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from m2serve.client import EndpointError
from m2serve.doctor.checks_answer import garbled, generates, reasoning, stops
from m2serve.doctor.checks_loops import (
    loops_long,
    loops_long_greedy,
    loops_short,
    loops_short_greedy,
)
from m2serve.doctor.checks_prompt import prompt_tokens
from m2serve.doctor.checks_service import cancel, context_limit, json_mode, prefix_cache
from m2serve.doctor.checks_stream import stream_equals_whole, stream_equals_whole_tools
from m2serve.doctor.checks_tools import one_tool_call, tool_arguments, tool_loop, two_tool_calls
from m2serve.doctor.probe import Probe
from m2serve.doctor.result import CheckResult
from m2serve.doctor.target import Target
from m2serve.spec.known_issues import KnownIssue, find_issue, issues_for

CheckFunction = Callable[[Probe, Target], Awaitable[CheckResult]]

QUICK: tuple[CheckFunction, ...] = (
    generates,
    prompt_tokens,
    reasoning,
    garbled,
    stops,
    one_tool_call,
    two_tool_calls,
    tool_arguments,
    stream_equals_whole,
    context_limit,
)
ALL: tuple[CheckFunction, ...] = (
    generates,
    prompt_tokens,
    reasoning,
    garbled,
    stops,
    one_tool_call,
    two_tool_calls,
    tool_arguments,
    tool_loop,
    stream_equals_whole,
    stream_equals_whole_tools,
    json_mode,
    loops_short,
    loops_short_greedy,
    prefix_cache,
    cancel,
    context_limit,
    loops_long,
    loops_long_greedy,
)
CHECK_TIMEOUT_S = 120.0
EXAMINATION_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Examination:
    """`certain` issues follow from what the endpoint says of itself, `likely` from symptoms, those
    that explain most first.
    """

    target: Target
    checks: tuple[CheckResult, ...]
    certain: tuple[KnownIssue, ...]
    likely: tuple[KnownIssue, ...]

    @property
    def has_failed(self) -> bool:
        return any(check.verdict == "fail" for check in self.checks)


async def examine(
    probe: Probe,
    target: Target,
    on_result: Callable[[CheckResult], None] = lambda result: None,
    *,
    check_timeout_s: float = CHECK_TIMEOUT_S,
    timeout_s: float = EXAMINATION_TIMEOUT_S,
) -> Examination:
    """Run the checks one after the other; `on_result` sees each as it ends.

    What begins after `timeout_s` is skipped. When the endpoint generates nothing, all that would
    ask it again is skipped, too.
    """
    end = time.monotonic() + timeout_s
    results: list[CheckResult] = []
    for function in QUICK if target.is_quick else ALL:
        name = function.__name__
        if results and results[0].verdict == "fail":
            result = target.check(name, "").skip("the endpoint does not generate")
        elif time.monotonic() > end:
            result = target.check(name, "").skip(f"the {timeout_s:g} s of the examination are over")
        else:
            result = await _within(function, probe, target, check_timeout_s)
        results.append(result)
        on_result(result)
    return Examination(target, tuple(results), *_issues(results, target))


async def _within(
    function: CheckFunction, probe: Probe, target: Target, timeout_s: float
) -> CheckResult:
    check = target.check(function.__name__, "")
    try:
        return await asyncio.wait_for(function(probe, target), timeout_s)
    except TimeoutError:
        detail = f"not done after {timeout_s:g} s: slow, or stuck"
        if function is generates:
            return check.fail("", detail, "slow", "fails")
        # What a slow machine cannot finish is not thereby wrong.
        return check.warn("", detail, "slow")
    except EndpointError as error:
        return check.fail(str(error), str(error), "fails")


def _issues(
    results: list[CheckResult], target: Target
) -> tuple[tuple[KnownIssue, ...], tuple[KnownIssue, ...]]:
    certain = issues_for(target.situation)
    seen = Counter(id for result in results for id in result.issues)
    known = {issue.id for issue in certain}
    likely = tuple(find_issue(id) for id, _ in seen.most_common() if id not in known)
    return certain, likely
