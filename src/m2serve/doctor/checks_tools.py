"""Do tool calls come out whole? Each check is one function."""

from __future__ import annotations

import json
from typing import Any

from m2serve.doctor.answer import Answer, Call
from m2serve.doctor.checks_answer import leaked_marker, refused
from m2serve.doctor.probe import Probe
from m2serve.doctor.questions import (
    FILE_TEXT,
    ONE_CITY,
    TWO_CITIES,
    WEATHER_TOOL,
    WRITE_FILE,
    WRITE_TOOL,
)
from m2serve.doctor.result import Check, CheckResult, shown
from m2serve.doctor.target import GREEDY, Target


async def one_tool_call(probe: Probe, target: Target) -> CheckResult:
    """One call with a text and a whole number comes back as such."""
    check = target.check("one_tool_call", ONE_CITY)
    answer = await probe.chat(target.body(ONE_CITY, 2048, tools=[WEATHER_TOOL], **GREEDY))
    if problem := call_problem(check, answer):
        return problem
    if len(answer.calls) > 1:
        return check.warn(_listed(answer), f"{len(answer.calls)} calls came where one was asked")
    if wrong := _wrong_city(answer.calls[0], "Paris"):
        return check.fail(_listed(answer), wrong, "arguments-cut")
    if answer.finish_reason != "tool_calls":
        detail = f"finish_reason is {answer.finish_reason!r}, so clients will not run the call"
        return check.fail(_listed(answer), detail, "no-tool-call")
    return check.ok(_listed(answer), "one call, arguments of the right types")


async def two_tool_calls(probe: Probe, target: Target) -> CheckResult:
    """Two calls in one answer are two."""
    check = target.check("two_tool_calls", TWO_CITIES)
    answer = await probe.chat(target.body(TWO_CITIES, 2048, tools=[WEATHER_TOOL], **GREEDY))
    if problem := call_problem(check, answer):
        return problem
    if len(answer.calls) == 1:
        return check.warn(_listed(answer), "one call came where two were asked for at once")
    for call, city in zip(answer.calls, ("Paris", "Tokyo"), strict=False):
        if wrong := _wrong_city(call, city):
            return check.fail(_listed(answer), wrong, "arguments-cut")
    if len({call.id for call in answer.calls}) < len(answer.calls):
        detail = "two calls have the same id, so results cannot be told apart"
        return check.fail(_listed(answer), detail)
    return check.ok(_listed(answer), f"{len(answer.calls)} calls with ids of their own")


async def tool_arguments(probe: Probe, target: Target) -> CheckResult:
    """A text with tags, quotes, braces and several lines arrives as it was written."""
    check = target.check("tool_arguments", WRITE_FILE)
    answer = await probe.chat(target.body(WRITE_FILE, 4096, tools=[WRITE_TOOL], **GREEDY))
    if problem := call_problem(check, answer):
        return problem
    text = arguments_of(answer.calls[0]).get("text")
    if not isinstance(text, str):
        detail = f"the argument text is {text!r}, not text"
        return check.fail(_listed(answer), detail, "arguments-cut")
    if text.strip() == FILE_TEXT.strip():
        return check.ok(_listed(answer), "the argument is the text, to the character")
    # A cut leaves a beginning of the text; a slip of the model changes something in it.
    if FILE_TEXT.startswith(text.rstrip()) or "</parameter" in text or "</invoke" in text:
        detail = f"the argument ends after {len(text)} of {len(FILE_TEXT)} characters, or runs on"
        return check.fail(_listed(answer), detail, "arguments-cut")
    return check.warn(_listed(answer), "the argument is not the text that was to be copied")


async def tool_loop(probe: Probe, target: Target) -> CheckResult:
    """A call, its result, an answer: the loop agents run."""
    check = target.check("tool_loop", f"{ONE_CITY} + its result")
    question = {"role": "user", "content": ONE_CITY}
    call = await probe.chat(target.body_of([question], 2048, tools=[WEATHER_TOOL], **GREEDY))
    if problem := call_problem(check, call):
        return problem
    history = [question, _assistant(call), *(_result(one) for one in call.calls)]
    answer = await probe.chat(target.body_of(history, 2048, tools=[WEATHER_TOOL], **GREEDY))
    if answer.status != 200:
        return refused(check, answer)
    if marker := leaked_marker(answer):
        return check.fail(answer.text, f"{marker} stands in the text", "marker-leaks")
    if not answer.content.strip() and not answer.calls:
        return check.warn(answer.text, "no answer followed the tool's result", "empty")
    return check.ok(answer.content or _listed(answer), "the result was taken up")


def call_problem(check: Check, answer: Answer) -> CheckResult | None:
    """What keeps an answer from being tool calls at all, or None."""
    if answer.status != 200:
        return refused(check, answer)
    if marker := leaked_marker(answer):
        detail = f"{marker} stands in the text instead of a call"
        return check.fail(answer.text, detail, "marker-leaks", "no-tool-call")
    if not answer.calls:
        return check.fail(answer.text, "no tool call came", "no-tool-call")
    for call in answer.calls:
        if not call.name:
            return check.fail(_listed(answer), "a call has no name", "stream-differs")
        if broken := broken_arguments(call):
            return check.fail(_listed(answer), broken, "arguments-cut")
    return None


def broken_arguments(call: Call) -> str:
    """Why arguments are no JSON object, as a sentence, or ""."""
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return f"arguments of {call.name!r} are no JSON: {shown(call.arguments)}"
    return "" if isinstance(value, dict) else f"arguments of {call.name!r} are no object"


def arguments_of(call: Call) -> dict[str, Any]:
    """The object in arguments that `broken_arguments` has nothing against."""
    value: dict[str, Any] = json.loads(call.arguments)
    return value


def _wrong_city(call: Call, city: str) -> str:
    arguments = arguments_of(call)
    if call.name != "get_weather":
        return f"the call is of {call.name!r}, not get_weather"
    if not isinstance(arguments.get("city"), str) or city not in arguments["city"]:
        return f"the argument city is {arguments.get('city')!r}, not {city}"
    days = arguments.get("days")
    if not isinstance(days, int) or isinstance(days, bool):
        return f"the argument days is {days!r}, and the schema says integer"
    return ""


def _assistant(answer: Answer) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in answer.calls
    ]
    return {
        "role": "assistant",
        "content": answer.content,
        "reasoning_content": answer.reasoning,
        "tool_calls": calls,
    }


def _result(call: Call) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.id, "content": "sunny, 24 degrees, no rain"}


def _listed(answer: Answer) -> str:
    return "; ".join(f"{call.name}({call.arguments})" for call in answer.calls)
