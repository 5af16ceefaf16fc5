from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from m2serve.engine.request import EngineOutput, EngineRequest, SamplingParams
from m2serve.engine.scripted import ScriptedEngine, TurnIds, load_script
from m2serve.errors import RequestError, UsageError

# One id a character; ids from 2_000_000 on play the special tokens.
TURN, END = 2_000_000, 2_000_001
USER, TOOL, AI = (TURN, ord("u")), (TURN, ord("t")), (TURN, ord("a"))


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def decode(ids: list[int]) -> str:
    return "".join(chr(i) if i < TURN else f"<{i - TURN}>" for i in ids)


def turn(start: tuple[int, int], text: str) -> list[int]:
    return [*start, *encode(text), END]


class Recorder:
    """Stands for the inner engine; yields the ids it is told to force."""

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        self.requests.append(request)
        forced = request.sampling.forced_token_ids or ()
        yield EngineOutput(
            request_id=request.request_id, token_ids=list(forced), finish_reason="stop"
        )


def scripted(folder: Path, *lines: dict[str, Any]) -> ScriptedEngine:
    path = folder / "script.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    turns = TurnIds(user_start=USER, tool_start=TOOL, end=END)
    return ScriptedEngine(Recorder(), path, decode=decode, encode=encode, turns=turns)


def ask(engine: ScriptedEngine, prompt: list[int]) -> str:
    async def collect() -> list[int]:
        sampling = SamplingParams(max_tokens=99, eos_token_ids=(END,), top_k=3)
        request = EngineRequest(request_id="a", prompt_token_ids=prompt, sampling=sampling)
        [output] = [output async for output in engine.generate(request)]
        [passed] = engine._inner.requests[-1:]
        assert passed.prompt_token_ids == prompt
        assert (passed.sampling.max_tokens, passed.sampling.top_k) == (99, 3)
        return output.token_ids

    *ids, last = asyncio.run(collect())
    assert last == END
    return decode(ids)


def test_the_first_line_that_matches_the_last_user_turn_answers(tmp_path: Path) -> None:
    engine = scripted(
        tmp_path,
        {"match": "weather", "completion": "sunny"},
        {"match": "we", "completion": "we what"},
        {"match": "", "completion": ""},
    )
    assert ask(engine, [*turn(USER, "the weather?"), *AI]) == "sunny"
    talk = [*turn(USER, "the weather?"), *turn(AI, "weather"), *turn(USER, "who are we"), *AI]
    assert ask(engine, talk) == "we what"
    assert ask(engine, [*turn(USER, "hello"), *turn(AI, "weather"), *AI]) == ""


def test_a_prompt_without_a_user_turn_matches_as_a_whole(tmp_path: Path) -> None:
    engine = scripted(tmp_path, {"match": "Once upon", "completion": "a time"})
    assert ask(engine, encode("Once upon")) == "a time"
    assert ask(engine, turn(AI, "Once upon")) == "a time"
    assert ask(engine, [*USER, *encode("Once upon")]) == "a time"


def test_after_tool_tells_the_rounds_of_a_tool_loop_apart(tmp_path: Path) -> None:
    engine = scripted(
        tmp_path,
        {"match": "go", "completion": "call", "after_tool": False},
        {"match": "go", "completion": "done", "after_tool": True},
        {"match": "", "completion": "either"},
    )
    loop = [*turn(USER, "go"), *turn(AI, "call"), *turn(TOOL, "result")]
    assert ask(engine, [*turn(USER, "go"), *AI]) == "call"
    assert ask(engine, [*loop, *AI]) == "done"
    assert ask(engine, [*loop, *turn(USER, "go"), *AI]) == "call"
    assert ask(engine, [*loop, *turn(USER, "stay"), *AI]) == "either"


def test_no_match_names_the_file(tmp_path: Path) -> None:
    engine = scripted(tmp_path, {"match": "x", "completion": "y"})
    with pytest.raises(RequestError, match=r"script\.jsonl matches"):
        ask(engine, turn(USER, "hello"))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"match": "x"}', "completion"),
        ('{"match": 1, "completion": "y"}', "match"),
        ('{"match": "x", "completion": "y", "after": true}', "after"),
        ('{"match": "x", "completion": "y", "after_tool": 1}', "after_tool"),
        ('{"match": "\\ud800", "completion": "y"}', "line 2"),
        ("[" * 100_000, "line 2"),
        ("\x00", "line 2"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, bad: str, problem: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"match": "", "completion": ""}\n' + bad + "\n")
    with pytest.raises(UsageError, match=r"s\.jsonl, line 2: ") as caught:
        load_script(path)
    assert problem in str(caught.value)


def test_unreadable_and_empty_scripts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_script(tmp_path / "none")
    with pytest.raises(UsageError, match="directory"):
        load_script(tmp_path)
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(UsageError, match="holds no line"):
        load_script(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b'{"match": "\xff", "completion": ""}')
    with pytest.raises(UsageError, match="line 1"):
        load_script(tmp_path / "latin")
