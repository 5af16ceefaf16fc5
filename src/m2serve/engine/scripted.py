"""Forced answers: an engine in front of another that decides what each request will generate.

The forced ids go through the real scheduler, model and sampler, so everything but the choice of
tokens is as always. For tests and for clients that need a deterministic answer in M2's format.

A script is JSON lines; the first line whose `match` is part of the last user message answers:

    {"match": "weather", "completion": "I look.</think>...", "after_tool": false}

`completion` is raw model output after the generation prompt. `after_tool` true: only when a tool
turn follows the last user turn; false: only when none does; absent: either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from m2serve.engine.client import EngineClient, EngineHealth
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats
from m2serve.errors import RequestError, UsageError

MAX_SCRIPT_BYTES = 64 * 1024 * 1024


class ScriptLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    match: str
    completion: str
    after_tool: bool | None = None


@dataclass(frozen=True)
class TurnIds:
    """Where turns of a prompt start and end: the leading ids of a turn, and the closing one."""

    user_start: tuple[int, ...]
    tool_start: tuple[int, ...]
    end: int


def load_script(path: Path) -> list[ScriptLine]:
    """Read a script; raises UsageError naming the file and the line."""
    try:
        if path.stat().st_size > MAX_SCRIPT_BYTES:
            raise UsageError(f"{path} is larger than {MAX_SCRIPT_BYTES} bytes")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"The script {path} cannot be read: {error.strerror}") from error
    script = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not script:
        raise UsageError(f'{path} holds no line like {{"match": "...", "completion": "..."}}')
    return script


class ScriptedEngine:
    """EngineClient that forces what `inner` generates.

    `decode` turns ids into text with special tokens left in; `encode` turns a completion into ids
    with special tokens recognised.
    """

    def __init__(
        self,
        inner: EngineClient,
        path: Path,
        *,
        decode: Callable[[Sequence[int]], str],
        encode: Callable[[str], Sequence[int]],
        turns: TurnIds,
    ) -> None:
        self._inner = inner
        self._path = path
        self._decode = decode
        self._turns = turns
        self._lines = [(line, (*encode(line.completion), turns.end)) for line in load_script(path)]

    async def start(self) -> None:
        await self._inner.start()

    async def wait_ready(self) -> EngineInfo:
        return await self._inner.wait_ready()

    @property
    def info(self) -> EngineInfo:
        return self._inner.info

    def health(self) -> EngineHealth:
        return self._inner.health()

    def stats(self) -> EngineStats:
        return self._inner.stats()

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Raises RequestError at once when no line of the script matches."""
        forced = self._answer(request.prompt_token_ids)
        sampling = msgspec.structs.replace(request.sampling, forced_token_ids=forced)
        return self._inner.generate(msgspec.structs.replace(request, sampling=sampling))

    async def close(self) -> None:
        await self._inner.close()

    def _answer(self, prompt: list[int]) -> tuple[int, ...]:
        text, after_tool = self._last_user_turn(prompt)
        for line, forced in self._lines:
            if line.match in text and line.after_tool in (None, after_tool):
                return forced
        raise RequestError(f"No line of the script {self._path} matches the last user message.")

    def _last_user_turn(self, prompt: list[int]) -> tuple[str, bool]:
        """Its text, and whether a tool turn follows; the whole prompt when it has no user turn."""
        at = _rfind(prompt, self._turns.user_start)
        if at < 0:
            return self._decode(prompt), False
        rest = prompt[at + len(self._turns.user_start) :]
        end = rest.index(self._turns.end) if self._turns.end in rest else len(rest)
        return self._decode(rest[:end]), _rfind(rest[end:], self._turns.tool_start) >= 0


def _parse(path: Path, number: int, line: bytes) -> ScriptLine:
    try:
        return msgspec.json.decode(line, type=ScriptLine)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}, line {number}: {error}") from error


def _rfind(ids: list[int], wanted: tuple[int, ...]) -> int:
    """Index of the last occurrence of `wanted` in `ids`, -1 if there is none."""
    for start in range(len(ids) - len(wanted), -1, -1):
        if tuple(ids[start : start + len(wanted)]) == wanted:
            return start
    return -1
