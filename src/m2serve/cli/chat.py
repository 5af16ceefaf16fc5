"""`m2 chat`: talk to a model in the terminal, on a server that runs or one started for it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console

from m2serve.checkpoint.hub import MINIATURE_NAME
from m2serve.cli.private_server import answers, private_server
from m2serve.client import Endpoint, EndpointError, as_list, as_object, as_text

DEFAULT_URL = "http://127.0.0.1:8000"
_HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"


@dataclass
class Turn:
    """One answer as it grows; `message()` is what goes back to the server in the next request."""

    reasoning: str = ""
    content: str = ""
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[i] for i in sorted(self.tool_calls)]
        return message


def chat(
    target: Annotated[
        str | None,
        typer.Argument(
            help="URL of a server, or a checkpoint folder or hub id to serve meanwhile. "
            f"Default: the server at {DEFAULT_URL} if there is one, else the built-in miniature.",
            metavar="[URL|MODEL]",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Served model name.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="M2_API_KEY", help="API key.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Server's default if absent.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Talk to a model in the terminal; reads lines from a pipe when there is no terminal."""
    sampling = {"temperature": temperature, "max_tokens": max_tokens}
    body = {name: value for name, value in sampling.items() if value is not None}
    asyncio.run(_chat(target, model, system, api_key, body))


async def _chat(
    target: str | None,
    model: str | None,
    system: str | None,
    api_key: str | None,
    body: dict[str, Any],
) -> None:
    async with _server(target, api_key) as url:
        await _converse(url, model, system, api_key, body)


@asynccontextmanager
async def _server(target: str | None, api_key: str | None) -> AsyncIterator[str]:
    """The URL to talk to; a server that had to be started ends with the block."""
    if target is None and await answers(DEFAULT_URL, api_key):
        yield DEFAULT_URL
    elif target is not None and "://" in target:
        yield target
    else:
        print(f"Starting {target or MINIATURE_NAME} for this conversation.", file=sys.stderr)
        async with private_server([target] if target else []) as url:
            yield url


async def _converse(
    url: str, model: str | None, system: str | None, api_key: str | None, body: dict[str, Any]
) -> None:
    console = Console(highlight=False)
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[dict[str, Any]] = list(opening)
    async with Endpoint(url, api_key=api_key) as endpoint:
        body["model"] = model or await _first_model(endpoint)
        if sys.stdin.isatty():
            console.print(f"{body['model']} at {endpoint.base_url}. {_HELP}.", style="dim")
        with CtrlC() as ctrl_c:
            # Nothing else goes on while a line is waited for, so the event loop may wait, too.
            while (line := _read_line()) is not None:
                if line == "/exit":
                    return
                if line == "/reset":
                    messages = list(opening)
                elif line:
                    messages.append({"role": "user", "content": line})
                    try:
                        await ctrl_c.ends(_answer(endpoint, body, messages, console))
                    except EndpointError as error:
                        if not sys.stdin.isatty():
                            raise
                        messages.pop()
                        console.print(f"\n{error}", style="red", markup=False)


class CtrlC:
    """Within the block Ctrl-C cancels what `ends` runs, as often as it comes; with nothing running
    it is a KeyboardInterrupt. asyncio.run's own handler would end the program the second time, and
    not at all while a line is read."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    async def ends(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._task = asyncio.create_task(coroutine)
        try:
            await asyncio.wait({task})
        finally:
            self._task = None
        if not task.cancelled():  # it may be before it began
            task.result()

    def _interrupt(self, number: int, frame: object) -> None:
        if self._task is None:
            raise KeyboardInterrupt
        self._loop.call_soon_threadsafe(self._task.cancel)


def _read_line() -> str | None:
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None


async def _first_model(endpoint: Endpoint) -> str:
    models = (await endpoint.get("/v1/models")).get("data")
    first = models[0] if isinstance(models, list) and models else None
    if not isinstance(first, dict) or not isinstance(first.get("id"), str):
        raise EndpointError(f"{endpoint.base_url} names no model at /v1/models")
    return str(first["id"])


async def _answer(
    endpoint: Endpoint, body: dict[str, Any], messages: list[dict[str, Any]], console: Console
) -> None:
    """Stream one answer to the screen and append it to `messages`; Ctrl-C keeps what came."""
    turn = Turn()
    request = {**body, "messages": messages, "stream": True}
    try:
        async for chunk in endpoint.stream("/v1/chat/completions", request):
            for choice in as_list(chunk.data.get("choices")):
                _show(as_object(choice), turn, console)
    except asyncio.CancelledError:  # Ctrl-C: the answer ends, not the conversation
        console.print("\n(stopped)", style="dim")
    else:
        console.print(_closing(turn), style="dim")
    messages.append(turn.message())


def _show(choice: dict[str, Any], turn: Turn, console: Console) -> None:
    delta = as_object(choice.get("delta"))
    if text := as_text(delta.get("reasoning_content") or delta.get("reasoning")):
        turn.reasoning += text
        console.print(text, style="dim", end="", markup=False, soft_wrap=True)
    if text := as_text(delta.get("content")):
        if turn.reasoning and not turn.content:
            console.print()
        turn.content += text
        console.print(text, end="", markup=False, soft_wrap=True)
    for call in as_list(delta.get("tool_calls")):
        _add_call(as_object(call), turn.tool_calls)
    turn.finish_reason = as_text(choice.get("finish_reason")) or turn.finish_reason


def _add_call(delta: dict[str, Any], calls: dict[int, dict[str, Any]]) -> None:
    empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    index = delta.get("index", 0)
    call = calls.setdefault(index if isinstance(index, int) else 0, empty)
    call["id"] = as_text(delta.get("id")) or call["id"]
    function = as_object(delta.get("function"))
    call["function"]["name"] += as_text(function.get("name"))
    call["function"]["arguments"] += as_text(function.get("arguments"))


def _closing(turn: Turn) -> str:
    calls = [turn.tool_calls[i]["function"] for i in sorted(turn.tool_calls)]
    lines = [f"\ncalls {call['name']}({call['arguments']})" for call in calls]
    if turn.finish_reason == "length":
        lines.append("\n(cut off: the answer reached its length limit)")
    return "".join(lines)
