"""Conversations with tools: one call, several, one after the other, none, a question back, errors.

After the last user message thinking is kept in every turn, as M2 expects it in a tool loop.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from m2serve.chat.messages import Assistant, ToolCall, ToolResult, Turn, User
from training.conversations.chat import small_talk
from training.conversations.free_questions import free_question
from training.conversations.phrasing import worded
from training.conversations.sample import Sample
from training.conversations.tool_domains import DOMAINS
from training.conversations.tool_results import Result
from training.conversations.tool_schemas import OfferedTool, draw_tools
from training.conversations.tool_slots import Value
from training.split import Split

# In quotes a name is made of the same tokens as in its schema and in the call.
_CALL = {"en": 'I call "{t}" with {v}.', "zh": '我调用"{t}"：{v}。'}
_NEXT_CALL = {"en": 'Now I call "{t}" with {v}.', "zh": '接着我调用"{t}"：{v}。'}
_HAVE_RESULT = {"en": "I have the result.", "zh": "已得到结果。"}
_FAILED = {"en": "The tool failed.", "zh": "工具出错了。"}
_SAY_FAILED = {"en": "The tool reports an error: {e}.", "zh": "工具报告错误：{e}。"}
_ERRORS = ("not found", "timeout", "permission denied", "service unavailable", "invalid input")
_AND = {"en": (" and ", ", "), "zh": ("和", "、")}
_ASK_BACK = {"en": "Something is missing.", "zh": "缺少信息。"}
_AGAIN = {
    "en": (
        "And {v}?",
        "What about {v}?",
        "Now {v}, please.",
        "{v}?",
        "The same for {v}.",
        "Also {v}.",
        "Next: {v}.",
        "And now {v}?",
        "Do {v}, too.",
    ),
    "zh": ("{v}呢？", "那{v}呢？", "再查{v}。", "还要{v}。", "{v}也一样。"),
}
_AGAIN_HELD_OUT = {"en": ("And how about {v}?",), "zh": ("还有{v}呢？",)}

# Domains with one required argument, whose request can name several values at once.
_PARALLEL = ("weather", "time", "read_file", "price", "user")
_WITH_QUESTION_BACK = ("weather", "read_file", "time")


@dataclass(frozen=True)
class Use:
    """One call to be made: its tool, its values by slot, its result."""

    offered: OfferedTool
    values: Mapping[str, Value]
    result: Result
    language: str

    @property
    def call(self) -> ToolCall:
        named = {self.offered.parameters[slot].name: v.json for slot, v in self.values.items()}
        return ToolCall("", self.offered.tool.name, named)

    @property
    def spoken(self) -> str:
        return ", ".join(value.spoken.rstrip(".。") for value in self.values.values())

    @property
    def planned(self) -> str:
        """What is thought before the call: its names, with the values as they are said.

        Where the schema lists values they are repeated, and one of them is named: the choice is
        then among what stands right before it, not in a definition some hundred tokens ago.
        """
        said = []
        for key, value in self.values.items():
            parameter = self.offered.parameters[key]
            listed = parameter.form.schema.get("enum")
            if listed is None:
                said.append(f'"{parameter.name}": {value.spoken.rstrip(".。")}')
            else:
                said.append(f'"{parameter.name}" of {json.dumps(listed)}: {value.json}')
        return ", ".join(said)

    @property
    def answer(self) -> str:
        text = self.offered.domain.wording[self.language].answer
        said = {slot: value.spoken for slot, value in self.values.items()} | dict(self.result.said)
        for slot, spoken in said.items():
            text = text.replace(f"{{{slot}}}", spoken)
        return text


def tool_use(rng: random.Random, split: Split) -> Sample:
    """One of nine shapes; every schema in it belongs to the split."""
    language = rng.choices(("en", "zh"), weights=(6, 4))[0]
    shape = rng.choices(
        (_one, _parallel, _two_kinds, _many, _chain, _none, _question_back, _again, _session),
        weights=(14, 11, 5, 22, 7, 8, 3, 7, 22),
    )[0]
    return shape(rng, split, language)


def one_call(rng: random.Random, split: Split, language: str) -> Sample:
    """The conversation up to the call; what the quiz's schema accuracy is measured on."""
    sample = _one(rng, split, language)
    return replace(sample, turns=sample.turns[:2])


def parallel_calls(rng: random.Random) -> Sample:
    """The same for two or three calls in one turn, held out."""
    sample = _parallel(rng, "held_out", rng.choice(("en", "en", "zh")))
    return replace(sample, turns=sample.turns[:2])


def with_result(rng: random.Random, split: Split, language: str) -> Sample:
    """One call, its result, and the sentence made of it."""
    sample = _one(rng, split, language)
    return replace(sample, answer=sample.last.content)


def draw_use(rng: random.Random, offered: OfferedTool, language: str) -> Use:
    """Values for every required slot and for some of the optional ones the schema has."""
    values = {}
    for slot, parameter in offered.parameters.items():
        if slot in offered.domain.required or rng.random() < 0.6:
            values[slot] = parameter.slot.value(rng, language, parameter.form)
    return Use(offered, values, offered.domain.result(rng, values, language), language)


def request_text(rng: random.Random, split: Split, use: Use, joined: str = "") -> str:
    """`joined` replaces the value of the only required slot."""
    domain = use.offered.domain
    wording = domain.wording[use.language]
    text = worded(rng, wording.train, wording.held_out, split, use.language)
    extra = ""
    for slot, value in use.values.items():
        phrase = use.offered.parameters[slot].slot.phrase
        if slot in domain.optional and phrase is not None:
            extra += phrase[use.language].replace("{v}", value.spoken)
        else:
            text = text.replace(f"{{{slot}}}", joined or value.spoken)
    return text.replace("{+}", extra)


def _others(rng: random.Random) -> int:
    return rng.choice((0, 0, 0, 1, 1, 2, 3))


def _sample(rng: random.Random, offered: list[OfferedTool], turns: list[Turn]) -> Sample:
    tools = [item.tool for item in offered]
    rng.shuffle(tools)
    return Sample("tool_use", tuple(turns), tools=tuple(tools))


def _session(rng: random.Random, split: Split, language: str) -> Sample:
    """One request after the other to the same tools: many calls for one reading of the schemas."""
    kinds = rng.sample(sorted(DOMAINS), rng.choice((1, 2, 2, 3)))
    offered = draw_tools(rng, split, kinds, rng.choice((0, 0, 1)))
    turns: list[Turn] = []
    for _ in range(rng.randint(3, 6)):
        use = draw_use(rng, rng.choice(offered[: len(kinds)]), language)
        turns += [User(request_text(rng, split, use)), *_calls([use]), _final([use])]
    return _sample(rng, offered, turns)


def _calls(uses: list[Use], is_first: bool = True) -> list[Turn]:
    """The assistant's calls and their results."""
    language = uses[0].language
    thought = (_CALL if is_first else _NEXT_CALL)[language].replace(
        "{t}", uses[0].offered.tool.name
    )
    spoken = _AND[language][0].join(use.planned for use in uses)
    if any(use.offered is not uses[0].offered for use in uses):
        thoughts = [
            _CALL[language].replace("{t}", u.offered.tool.name).replace("{v}", u.planned)
            for u in uses
        ]
        thought = (" " if language == "en" else "").join(thoughts)
    turns: list[Turn] = [
        Assistant("", thought.replace("{v}", spoken), tuple(use.call for use in uses))
    ]
    return turns + [ToolResult("", use.result.text) for use in uses]


def _final(uses: list[Use]) -> Assistant:
    language = uses[0].language
    return Assistant(" ".join(use.answer for use in uses), _HAVE_RESULT[language])


def _one(rng: random.Random, split: Split, language: str) -> Sample:
    name = rng.choice((*DOMAINS, "weather", "weather"))
    offered = draw_tools(rng, split, [name], _others(rng))
    use = draw_use(rng, offered[0], language)
    turns: list[Turn] = [User(request_text(rng, split, use)), *_calls([use])]
    if rng.random() < 0.08:
        error = rng.choice(_ERRORS)
        turns[-1] = ToolResult("", rng.choice((f"Error: {error}", json.dumps({"error": error}))))
        turns.append(Assistant(_SAY_FAILED[language].replace("{e}", error), _FAILED[language]))
    else:
        turns.append(_final([use]))
    return _sample(rng, offered, turns)


def _parallel(rng: random.Random, split: Split, language: str) -> Sample:
    """Two or three values of one kind: as many calls in one turn."""
    offered = draw_tools(rng, split, [rng.choice(_PARALLEL)], _others(rng))
    first = draw_use(rng, offered[0], language)
    slot = next(iter(offered[0].domain.required))
    uses = [first]
    for _ in range(rng.choice((1, 1, 2))):
        value = draw_use(rng, offered[0], language).values[slot]
        values = {**first.values, slot: value}
        result = offered[0].domain.result(rng, values, language)
        uses.append(Use(offered[0], values, result, language))
    spoken = [use.values[slot].spoken for use in uses]
    last, comma = _AND[language]
    joined = comma.join(spoken[:-1]) + last + spoken[-1]
    turns = [User(request_text(rng, split, first, joined)), *_calls(uses), _final(uses)]
    return _sample(rng, offered, turns)


def _two_kinds(rng: random.Random, split: Split, language: str) -> Sample:
    """Two requests in one message: two different tools in one turn."""
    offered = draw_tools(rng, split, rng.sample(sorted(DOMAINS), 2), rng.choice((0, 1, 2)))
    uses = [draw_use(rng, item, language) for item in offered[:2]]
    text = (" " if language == "en" else "").join(request_text(rng, split, use) for use in uses)
    return _sample(rng, offered, [User(text), *_calls(uses), _final(uses)])


def _many(rng: random.Random, split: Split, language: str) -> Sample:
    """A list of requests, each for one of the tools: all calls in one turn."""
    offered = draw_tools(rng, split, rng.sample(sorted(DOMAINS), rng.choice((1, 2, 2, 3))), 0)
    uses = [draw_use(rng, rng.choice(offered), language) for _ in range(rng.randint(3, 6))]
    turns: list[Turn] = [User("\n".join(request_text(rng, split, use) for use in uses))]
    turns += _calls(uses) if rng.random() < 0.5 else _calls(uses)[:1]
    if len(turns) > 2:
        turns.append(_final(uses))
    return _sample(rng, offered, turns)


def _chain(rng: random.Random, split: Split, language: str) -> Sample:
    """The second call needs the result of the first."""
    first_name, second_name, slot = rng.choice(_CHAINS)
    offered = draw_tools(rng, split, [first_name, second_name], rng.choice((0, 1, 2)))
    first = draw_use(rng, offered[0], language)
    second = draw_use(rng, offered[1], language)
    found = first.answer
    values = {key: v for key, v in second.values.items() if key in offered[1].domain.required}
    second = Use(offered[1], {**values, slot: Value(found, found)}, second.result, language)
    spoken = next(v.spoken for key, v in values.items() if key != slot)
    request = request_text(rng, split, first).rstrip(".?。？")
    then = rng.choice(_THEN[second_name][language]).replace("{v}", spoken)
    turns: list[Turn] = [User(request + then), *_calls([first]), *_calls([second], False)]
    turns.append(Assistant(second.answer, _HAVE_RESULT[language]))
    return _sample(rng, offered, turns)


_CHAINS = (
    ("weather", "message", "message"),
    ("time", "message", "message"),
    ("price", "message", "message"),
    ("calculator", "write_file", "content"),
    ("search", "write_file", "content"),
    ("weather", "write_file", "content"),
)
_THEN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "message": {
        "en": (" and send the answer to {v}.", ", then tell {v}.", " and let {v} know."),
        "zh": ("，然后告诉{v}。", "，并把结果发给{v}。"),
    },
    "write_file": {
        "en": (" and save it to {v}.", ", then write it to {v}."),
        "zh": ("，然后写入{v}。", "，并保存到{v}。"),
    },
}


def _none(rng: random.Random, split: Split, language: str) -> Sample:
    """Tools are offered and not needed."""
    sample = rng.choice((free_question, free_question, small_talk))(rng, split)
    offered = draw_tools(rng, split, [], rng.randint(1, 4))
    return replace(sample, kind="tool_use", tools=tuple(item.tool for item in offered), answer="")


def _question_back(rng: random.Random, split: Split, language: str) -> Sample:
    """A required value is missing: ask for it, and call when it comes."""
    name = rng.choice(_WITH_QUESTION_BACK)
    offered = draw_tools(rng, split, [name], _others(rng))
    use = draw_use(rng, offered[0], language)
    required = {slot: use.values[slot] for slot in offered[0].domain.required}
    use = Use(offered[0], required, offered[0].domain.result(rng, required, language), language)
    wording = offered[0].domain.wording[language]
    asked, asked_back = rng.choice(wording.incomplete), wording.asked_back
    if rng.random() < 0.5:
        return _sample(rng, offered, [User(asked), Assistant(asked_back, _ASK_BACK[language])])
    turns = [User(asked), Assistant(asked_back), User(use.spoken), *_calls([use]), _final([use])]
    return _sample(rng, offered, turns)


def _again(rng: random.Random, split: Split, language: str) -> Sample:
    """A second question like the first; the thinking of the first round is gone by then."""
    offered = draw_tools(rng, split, [rng.choice(_PARALLEL)], _others(rng))
    first = draw_use(rng, offered[0], language)
    slot = next(iter(offered[0].domain.required))
    values = {slot: draw_use(rng, offered[0], language).values[slot]}
    second = Use(offered[0], values, offered[0].domain.result(rng, values, language), language)
    first = Use(offered[0], {slot: first.values[slot]}, first.result, language)
    again = (_AGAIN if split == "train" else _AGAIN_HELD_OUT)[language]
    follow = rng.choice(again).replace("{v}", second.spoken)
    turns = [
        User(request_text(rng, split, first)),
        *_calls([first]),
        _final([first]),
        User(follow),
        *_calls([second]),
        _final([second]),
    ]
    return _sample(rng, offered, turns)
