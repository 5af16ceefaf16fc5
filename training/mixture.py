"""Which conversations, how often, and how long: the curriculum.

Documents are numbered; the n-th of a seed and a stage is always the same, so a run can stop
anywhere and several processes can draw ahead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from m2serve.chat.messages import System
from training.conversations.arithmetic import arithmetic
from training.conversations.chat import SYSTEM_PROMPTS, small_talk
from training.conversations.drills import drill
from training.conversations.free_questions import free_question
from training.conversations.json_objects import json_object
from training.conversations.multiple_choice import multiple_choice
from training.conversations.python_functions import python_function
from training.conversations.retrieval import copying, retrieval
from training.conversations.sample import NO_SYSTEM, Sample
from training.conversations.tool_use import tool_use
from training.split import Split

Generator = Callable[[random.Random, Split], Sample]

GENERATORS: Mapping[str, Generator] = {
    "free_question": free_question,
    "multiple_choice": multiple_choice,
    "arithmetic": arithmetic,
    "tool_use": tool_use,
    "retrieval": retrieval,
    "copying": copying,
    "small_talk": small_talk,
    "json_object": json_object,
    "python_function": python_function,
}
# Documents, not tokens.
WEIGHTS: Mapping[str, float] = {
    "free_question": 40,
    "multiple_choice": 34,
    "arithmetic": 18,
    "tool_use": 44,
    "retrieval": 7,
    "copying": 4,
    "small_talk": 4,
    "json_object": 5,
    "python_function": 2,
}
SYSTEM_SHARE = 0.12


@dataclass(frozen=True)
class Stage:
    """`until` is the fraction of the run at which the stage ends.

    No document has more than `max_tokens`. `long_share` of the documents are long texts with
    needles, of `long_tokens` at the least and nearly `max_tokens` at the most; `drill_share` are
    drills. A step has `step_share` of the run's tokens a step: many small steps early.
    """

    name: str
    until: float
    max_tokens: int
    long_share: float
    long_tokens: int
    step_share: float
    drill_share: float


STAGES = (
    Stage("first", 0.04, 768, 0.0, 0, 0.5, 0.3),
    Stage("drills", 0.14, 768, 0.0, 0, 0.5, 0.6),
    Stage("short", 0.62, 768, 0.0, 0, 0.5, 0.3),
    Stage("medium", 0.84, 2048, 0.03, 500, 1.0, 0.3),
    Stage("long", 1.0, 4096, 0.03, 600, 1.0, 0.2),
)
LONG_MARGIN = 0.9  # tokens are estimated when the text is drawn


def stage_at(progress: float) -> int:
    """Index of the stage at this fraction of the run."""
    return next((i for i, stage in enumerate(STAGES) if progress < stage.until), len(STAGES) - 1)


def draw_sample(
    rng: random.Random, split: Split, stage: Stage = STAGES[0], pieces: Sequence[str] = ()
) -> Sample:
    """`pieces` are the texts of the vocabulary's tokens, for drills; () while there is none."""
    if rng.random() < stage.long_share:
        most = int(stage.max_tokens * LONG_MARGIN)
        return retrieval(rng, split, rng.randint(stage.long_tokens, most))
    if split == "train" and rng.random() < stage.drill_share:
        return drill(rng, pieces)
    kind = rng.choices(tuple(WEIGHTS), weights=tuple(WEIGHTS.values()))[0]
    return _with_system(rng, GENERATORS[kind](rng, split))


def document_rng(seed: int, stage: int, index: int) -> random.Random:
    return random.Random(f"{seed}:{stage}:{index}")


def _with_system(rng: random.Random, sample: Sample) -> Sample:
    """An operator's text now and then, where the question is not who the model is."""
    if sample.kind == "small_talk" or sample.system != NO_SYSTEM or rng.random() >= SYSTEM_SHARE:
        return sample
    return replace(sample, system=System(rng.choice(SYSTEM_PROMPTS)))
