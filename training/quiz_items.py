"""The questions of the quiz: held-out phrasings, numbers, schemas and keys; always the same ones.

    python -m training.quiz_items FILE --tokenizer FOLDER [--salt TEXT]

writes them as JSON lines. Another salt draws other questions of the same kinds: whoever has looked
at answers while building asks those in the end. Sets: `knowledge` (multiple choice, fourteen
categories alike), `knowledge_zh`, `tools`, `tools_parallel`, `tool_answers` (what is said with a
result), `needle_2000`, `needle_4000`, `free_question`, `arithmetic`, `json_object`, `copying`,
`python_function`, `small_talk`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from m2serve.chat.messages import Assistant, ToolResult, Turn, User
from m2serve.chat.tokenizer import Tokenizer
from training.conversations.arithmetic import arithmetic
from training.conversations.chat import small_talk
from training.conversations.fact_choice import facts_of_category
from training.conversations.free_questions import free_question
from training.conversations.json_objects import json_object
from training.conversations.multiple_choice import as_sample, fact_choice, sum_choice
from training.conversations.python_functions import python_function
from training.conversations.retrieval import copying, retrieval
from training.conversations.sample import Sample
from training.conversations.tool_use import one_call, parallel_calls, with_result
from training.facts import CATEGORIES
from training.rendering import prompt_ids

A_CATEGORY = 90
A_CATEGORY_ZH = 20
SUMS_AMONG_MATH = 15
NUM_TOOLS = 300
NUM_PARALLEL = 60
NUM_ANSWERS = 100
NUM_NEEDLES = 60
NUM_OTHERS = 100
MAX_NEW_TOKENS = 256
NEEDLE_TOKENS = {"needle_2000": 2000, "needle_4000": 4000}
NEEDLE_SLACK = 50
MAX_FITTINGS = 12
ROOM_TO_ANSWER = 90  # a prompt of "4000 tokens" still leaves the answer its place in 4096


@dataclass(frozen=True)
class Item:
    """One question in OpenAI's words. `answer` and `calls` are what a right answer says.

    `calls` holds [name, arguments] pairs. `depth` is where the needle lies, 0 first, 1 last.
    """

    id: str
    set: str
    category: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    answer: str
    calls: list[tuple[str, dict[str, Any]]]
    depth: float | None = None
    max_tokens: int = MAX_NEW_TOKENS

    @property
    def fingerprint(self) -> str:
        """Equal for equal questions: a long text is another under another tokenizer."""
        asked = json.dumps([self.messages, self.tools, self.answer, self.calls])
        return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()


def quiz_items(tokenizer: Tokenizer, salt: str = "") -> list[Item]:
    """All items; needs the tokenizer only to make long texts of the right length."""
    seed = f"quiz{salt and '@'}{salt}"
    drawn = partial(_drawn, seed)
    items = [
        *_numbered("knowledge", _knowledge(seed, "en", A_CATEGORY)),
        *_numbered("knowledge_zh", _knowledge(seed, "zh", A_CATEGORY_ZH)),
        *_numbered("tools", drawn("tools", NUM_TOOLS, _tool_call)),
        *_numbered("tools_parallel", drawn("tools_parallel", NUM_PARALLEL, parallel_calls)),
    ]
    items += _numbered("tool_answers", drawn("tool_answers", NUM_ANSWERS, _tool_answer))
    for name, num_tokens in NEEDLE_TOKENS.items():
        items += _needles(seed, name, num_tokens, tokenizer)
    for name, make in _OTHERS.items():
        items += _numbered(name, drawn(name, NUM_OTHERS, partial(make, split="held_out")))
    return items


_OTHERS: dict[str, Callable[..., Sample]] = {
    "free_question": free_question,
    "arithmetic": arithmetic,
    "json_object": json_object,
    "copying": copying,
    "python_function": python_function,
    "small_talk": small_talk,
}


def _drawn(
    seed: str, name: str, count: int, make: Callable[[random.Random], Sample]
) -> Iterator[Sample]:
    for number in range(count):
        sample = make(random.Random(f"{seed}:{name}:{number}"))
        while not sample.answer and not sample.last.tool_calls:  # nothing to compare with
            number += count
            sample = make(random.Random(f"{seed}:{name}:{number}"))
        yield sample


def _knowledge(seed: str, language: str, count: int) -> Iterator[Sample]:
    """Different facts of each category, as far as it has so many."""
    for category in CATEGORIES:
        rng = random.Random(f"{seed}:{language}:{category}")
        facts = facts_of_category(category, language)
        num_sums = SUMS_AMONG_MATH if category == "math" and language == "en" else 0
        rng.shuffle(facts)
        # A relation known to be easy (continents, kinds) takes part by its weight.
        facts.sort(key=lambda drawn: rng.random() >= drawn[0].weight)
        for number in range(min(count - num_sums, len(facts))):
            choice = fact_choice(rng, "held_out", facts[number], language, num_options=10)
            yield as_sample(choice)
        for _ in range(num_sums):
            yield as_sample(sum_choice(rng, "held_out"))


def _tool_call(rng: random.Random) -> Sample:
    return one_call(rng, "held_out", rng.choice(("en", "en", "zh")))


def _tool_answer(rng: random.Random) -> Sample:
    return with_result(rng, "held_out", rng.choice(("en", "en", "zh")))


def _needles(seed: str, name: str, num_tokens: int, tokenizer: Tokenizer) -> Iterator[Item]:
    """One needle each, at depths spread evenly; the whole prompt has nearly `num_tokens`."""
    for number in range(NUM_NEEDLES):
        depth = number / (NUM_NEEDLES - 1)
        wanted = min(num_tokens, 4096 - ROOM_TO_ANSWER)
        text_tokens = wanted
        for _ in range(MAX_FITTINGS):
            sample = retrieval(
                random.Random(f"{seed}:{name}:{number}"),
                "held_out",
                text_tokens,
                num_needles=1,
                depth=depth,
                measure=lambda text: len(tokenizer.encode(text)),
            )
            excess = len(prompt_ids(sample, tokenizer)) - wanted
            if -NEEDLE_SLACK <= excess <= 0:
                break
            text_tokens -= excess + NEEDLE_SLACK // 2
        yield _item(f"{name}:{number}", name, sample, depth)


def _numbered(name: str, samples: Iterator[Sample]) -> list[Item]:
    return [_item(f"{name}:{number}", name, sample) for number, sample in enumerate(samples)]


def _item(id: str, set_name: str, sample: Sample, depth: float | None = None) -> Item:
    return Item(
        id,
        set_name,
        sample.category,
        [*_system(sample), *_messages(sample.turns[:-1])],
        [{"type": "function", "function": json.loads(t.definition)} for t in sample.tools],
        sample.answer,
        [(call.name, dict(call.arguments)) for call in sample.last.tool_calls],
        depth,
    )


def _system(sample: Sample) -> list[dict[str, Any]]:
    return [{"role": "system", "content": sample.system.text}] if sample.system.text else []


def _messages(turns: Sequence[Turn]) -> Iterator[dict[str, Any]]:
    """Results carry the ids of the calls in front of them, in order."""
    waiting: deque[str] = deque()
    for number, turn in enumerate(turns):
        if isinstance(turn, User):
            yield {"role": "user", "content": turn.text}
        elif isinstance(turn, ToolResult):
            yield {"role": "tool", "tool_call_id": waiting.popleft(), "content": turn.text}
        else:
            waiting.extend(f"call_{number}_{n}" for n in range(len(turn.tool_calls)))
            yield _assistant_message(turn, list(waiting))


def _assistant_message(turn: Assistant, ids: Sequence[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for id, call in zip(ids, turn.tool_calls, strict=True)
        ]
    return message


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the questions of the quiz.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--salt", default="")
    arguments = parser.parse_args()
    items = quiz_items(Tokenizer.load(arguments.tokenizer), arguments.salt)
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
    arguments.file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
