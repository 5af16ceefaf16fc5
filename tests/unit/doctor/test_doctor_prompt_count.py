"""Counts are those of the renderer's own prompts, and the published prompt has its length."""

import pytest
from fake_endpoint import COUNTER

from m2serve.doctor.prompt_count import CASES, PUBLISHED_CASE, PUBLISHED_COUNT, PromptCase

# The published tokenizer's ids of the prompt "test" to M2.7: head, user turn, generation prompt.
PUBLISHED_IDS = (
    "200034 200019 28463 10 2985 457 258 12473 23413 46 5324 1925 355 35353 12973 5145 50 46 55",
    "306 355 6904 531 35353 12973 46 200020 10 200019 3995 10 4500 200020 10",
    "200019 1361 10 200050 10",
)


def test_the_published_count_is_that_of_the_published_ids() -> None:
    assert len(" ".join(PUBLISHED_IDS).split()) == PUBLISHED_COUNT
    [case] = [case for case in CASES if case.name == PUBLISHED_CASE]
    assert case.messages[0]["content"].endswith("MiniMax-M2.7 and is built by MiniMax.")


@pytest.mark.parametrize(("name", "is_kept"), [("tool loop", True), ("two turns", False)])
def test_thinking_counts_in_the_running_loop_alone(name: str, is_kept: bool) -> None:
    case: PromptCase = next(case for case in CASES if case.name == name)
    without = [
        {key: value for key, value in message.items() if key != "reasoning_content"}
        for message in case.messages
    ]
    less = COUNTER.count(without, case.tools)
    assert (COUNTER.count(case.messages, case.tools) > less) == is_kept
