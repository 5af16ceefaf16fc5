"""Greedy or sampled replies of the engine in this process, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2serve.engine.engine import Engine
    from m2serve.engine.request import SamplingParams

BATCH = 64  # what the engine is to run at once


def replies(
    engine: Engine, prompts: Sequence[list[int]], params: Sequence[SamplingParams]
) -> Iterator[tuple[list[int], str]]:
    """The token ids of each reply, in order, and why it ended."""
    from m2serve.engine.request import EngineRequest

    for start in range(0, len(prompts), BATCH):
        part = range(start, min(start + BATCH, len(prompts)))
        outputs: dict[str, list[int]] = {str(number): [] for number in part}
        reasons = dict.fromkeys(outputs, "")
        for number in part:
            engine.add(
                EngineRequest(
                    request_id=str(number),
                    prompt_token_ids=prompts[number],
                    sampling=params[number],
                )
            )
        while engine.has_work():
            for output in engine.step():
                outputs[output.request_id] += output.token_ids
                reasons[output.request_id] = output.finish_reason or ""
        yield from zip(outputs.values(), reasons.values(), strict=True)
