"""Every breakage of an endpoint is caught by the check that is there for it, and no other thing."""

import asyncio
import dataclasses

import pytest
from fake_endpoint import COUNTER, MODEL, fake_endpoint

import m2serve.doctor.checks_service
from m2serve.client import EndpointError
from m2serve.doctor.examination import ALL, QUICK, Examination, examine
from m2serve.doctor.probe import Probe
from m2serve.doctor.result import CheckResult
from m2serve.doctor.target import find_target
from m2serve.spec.known_issues import find_issue


def examined(
    fault: str = "", *, quick: bool = False, counter: object = COUNTER, timeout_s: float = 300
) -> tuple[Examination, dict[str, CheckResult]]:
    async def run(url: str) -> Examination:
        async with Probe(url, timeout_s=20) as probe:
            target = await find_target(probe)
            target = dataclasses.replace(target, counter=counter, is_quick=quick)
            return await examine(probe, target, timeout_s=timeout_s)

    with fake_endpoint(fault) as (url, _):
        found = asyncio.run(run(url))
    return found, {check.name: check for check in found.checks}


def test_a_healthy_endpoint_passes_every_check() -> None:
    found, checks = examined()
    wrong = {name: check for name, check in checks.items() if check.verdict != "ok"}
    assert wrong == {}
    assert list(checks) == [function.__name__ for function in ALL]
    assert not found.has_failed
    assert found.likely == ()
    assert (found.target.model, found.target.situation.engine_version) == (MODEL, "0.19.1")


def test_quick_asks_less() -> None:
    _, checks = examined(quick=True)
    assert list(checks) == [function.__name__ for function in QUICK]


# fault -> the checks that must see it, each with its verdict and an issue or a word of its detail
FAULTS = {
    "append-think": {"reasoning": ("warn", "K60")},
    "half-think": {"reasoning": ("fail", "0 <think> and 1 </think>")},
    "think-in-reasoning": {"reasoning": ("warn", "think tags")},
    "no-thinking": {"reasoning": ("warn", "no thinking")},
    "raw-calls": {"one_tool_call": ("fail", "K72"), "two_tool_calls": ("fail", "K72")},
    "no-calls": {"one_tool_call": ("fail", "no tool call"), "tool_loop": ("fail", "no tool call")},
    "text-cut": {"tool_arguments": ("fail", "K66")},
    "days-as-text": {"one_tool_call": ("fail", "integer")},
    "one-call": {"two_tool_calls": ("warn", "one call came")},
    "same-ids": {"two_tool_calls": ("fail", "same id")},
    "arguments-cut": {
        "one_tool_call": ("fail", "no JSON"),
        "two_tool_calls": ("fail", "no JSON"),
        "tool_arguments": ("fail", "no JSON"),
    },
    "loops": {
        "stops": ("fail", "circles"),
        "loops_short": ("fail", "K76"),
        "loops_short_greedy": ("fail", "K76"),
        "loops_long": ("fail", "repeats"),
        "loops_long_greedy": ("fail", "repeats"),
    },
    "nan": {"garbled": ("fail", "NaN"), "loops_short": ("fail", "'!'")},
    "mojibake": {"garbled": ("fail", "script changes")},
    "only-thinking": {"stops": ("warn", "K77"), "reasoning": ("warn", "all is thinking")},
    "template": {"prompt_tokens": ("fail", "another tokenizer")},
    "identity": {"prompt_tokens": ("warn", "another default system text")},
    "drops-thinking": {"prompt_tokens": ("fail", "tool loop")},
    "bos-twice": {"prompt_tokens": ("fail", "BOS comes twice")},
    "no-usage": {"prompt_tokens": ("skipped", "no usage")},
    "stream-loses": {"stream_equals_whole": ("fail", "content from number")},
    "stream-nameless": {"stream_equals_whole_tools": ("fail", "no name")},
    "stream-open-json": {"stream_equals_whole_tools": ("fail", "no JSON")},
    "bursts": {"stream_equals_whole_tools": ("warn", "K65")},
    "500-at-limit": {"context_limit": ("fail", "answered 500")},
    "truncates": {"context_limit": ("warn", "cut without a word")},
    "bad-json": {"json_mode": ("fail", "no JSON")},
    "no-json": {"json_mode": ("warn", "not supported")},
    "no-prefix-cache": {"prefix_cache": ("warn", "K88")},
    "cancel-ignored": {"cancel": ("fail", "still run")},
    "no-metrics": {"cancel": ("ok", "no /metrics")},
}
# Checks that rightly see the same fault from another side.
ALSO = {
    "half-think": {"json_mode"},
    "no-usage": {"prefix_cache"},
    "loops": {"reasoning", "garbled", "stream_equals_whole", "cancel", "generates", "json_mode"},
    "nan": {name.__name__ for name in ALL},
    "mojibake": {"generates", "json_mode", "loops_short", "loops_short_greedy", "loops_long"}
    | {"loops_long_greedy"},
    "only-thinking": {name.__name__ for name in ALL},
    "append-think": {"json_mode"},
    "raw-calls": {"tool_arguments", "tool_loop"},
    "no-calls": {"two_tool_calls", "tool_arguments"},
    "arguments-cut": {"tool_loop", "stream_equals_whole_tools"},
    "days-as-text": {"two_tool_calls"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_where_it_belongs(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m2serve.doctor.checks_service, "CANCEL_DEADLINE_S", 0.5)
    found, checks = examined(fault)
    for name, (verdict, sign) in FAULTS[fault].items():
        check = checks[name]
        assert check.verdict == verdict, check
        assert sign in check.issues or sign in check.detail, check
    others = {
        name: check
        for name, check in checks.items()
        if check.verdict != "ok" and name not in FAULTS[fault].keys() | ALSO.get(fault, set())
    }
    assert others == {}
    assert found.has_failed == any(check.verdict == "fail" for check in found.checks)


def test_issues_that_the_engine_rules_out_are_not_named() -> None:
    found, _ = examined("bursts")
    assert [issue.id for issue in found.likely] == ["K65"]
    found, checks = examined("append-think")
    assert "K62" not in {issue.id for issue in found.likely}, "SGLang's"
    assert all(find_issue(id) for check in checks.values() for id in check.issues)


@pytest.mark.parametrize(("fault", "word"), [("dead", "answered 500"), ("silent", "empty")])
def test_nothing_more_is_asked_of_an_endpoint_that_does_not_generate(fault: str, word: str) -> None:
    found, checks = examined(fault)
    assert checks["generates"].verdict == "fail"
    assert word in checks["generates"].detail
    assert {check.verdict for check in found.checks[1:]} == {"skipped"}
    assert found.has_failed


def test_without_a_tokenizer_the_published_count_is_asked_for() -> None:
    _, checks = examined(quick=True, counter=None)
    assert checks["prompt_tokens"].verdict == "warn"
    assert "39" in checks["prompt_tokens"].detail


def test_what_begins_too_late_is_skipped() -> None:
    found, _ = examined(timeout_s=-1)
    assert {check.verdict for check in found.checks} == {"skipped"}


def test_what_a_slow_machine_cannot_finish_is_no_failure() -> None:
    async def run(url: str) -> Examination:
        async with Probe(url) as probe:
            return await examine(probe, await find_target(probe), check_timeout_s=0.2)

    with fake_endpoint("slow") as (url, _):
        found = asyncio.run(run(url))
    checks = {check.name: check for check in found.checks}
    assert checks["generates"].verdict == "ok"
    assert checks["garbled"].verdict == "warn"
    assert "not done after 0.2 s" in checks["garbled"].detail


def test_an_endpoint_that_never_answers_fails_at_once() -> None:
    async def run(url: str) -> Examination:
        async with Probe(url) as probe:
            return await examine(probe, await find_target(probe), check_timeout_s=0.05)

    with fake_endpoint("stuck") as (url, _):
        found = asyncio.run(run(url))
    assert [check.verdict for check in found.checks[:2]] == ["fail", "skipped"]


def test_an_endpoint_that_is_not_there() -> None:
    async def run() -> None:
        async with Probe("http://127.0.0.1:9") as probe:
            await find_target(probe)

    with pytest.raises(EndpointError, match="no answer from"):
        asyncio.run(run())


def test_a_model_by_name_need_not_be_listed() -> None:
    async def run(url: str) -> str:
        async with Probe(url) as probe:
            return (await find_target(probe, "other")).model

    with fake_endpoint() as (url, _):
        assert asyncio.run(run(url)) == "other"


def test_a_check_never_sends_more_than_half_of_the_context_for_the_answer() -> None:
    async def run(url: str) -> None:
        async with Probe(url) as probe:
            target = dataclasses.replace(await find_target(probe), max_model_len=512)
            await examine(probe, target)

    with fake_endpoint() as (url, endpoint):
        asyncio.run(run(url))
    assert max(body["max_tokens"] for body in endpoint.requests) <= 256
