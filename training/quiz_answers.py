"""Puts the questions to a model: through the engine in this process, or over HTTP."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2serve.chat.identity import model_identity
from m2serve.chat.messages import normalize
from m2serve.chat.parser import OutputParser, ParserOptions, parse_output
from m2serve.chat.renderer import render
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import parse_tools
from training.generation import BATCH, replies
from training.quiz_items import Item
from training.quiz_scoring import Answer

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. The seed of a question is `seed` and its place in the quiz."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


def ask_engine(
    items: Sequence[Item], folder: Path, settings: Mapping[str, str], sampling: Sampling
) -> Iterator[Answer]:
    """In order, BATCH questions at a time. `settings` are fields of EngineConfig."""
    from m2serve.engine.engine import Engine
    from m2serve.engine.request import SamplingParams

    tokenizer = Tokenizer.load(folder)
    identity = model_identity(folder)
    engine = Engine.load(folder, max_num_seqs=BATCH, **settings)
    params = [
        SamplingParams(
            max_tokens=item.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed + number,
            eos_token_ids=(tokenizer.control.turn_end,),
        )
        for number, item in enumerate(items)
    ]
    prompts = [prompt_of(item, tokenizer, identity) for item in items]
    for item, (ids, reason) in zip(items, replies(engine, prompts, params), strict=True):
        yield read_answer(item, ids, reason, tokenizer)


def prompt_of(item: Item, tokenizer: Tokenizer, identity: str) -> list[int]:
    segments = render(
        normalize(item.messages), parse_tools(item.tools or None), model_identity=identity
    )
    return tokenizer.encode_segments(segments)


def read_answer(item: Item, ids: Sequence[int], reason: str, tokenizer: Tokenizer) -> Answer:
    """The parts of an answer as the server would send them."""
    spoken = [i for i in ids if i != tokenizer.control.turn_end]
    data = [tokenizer.token_bytes(i) for i in spoken]
    parser = OutputParser(
        parse_tools(item.tools or None), ParserOptions(), control=tokenizer.control
    )
    parsed = parse_output(parser, zip(_texts(data), spoken, strict=True))
    calls = tuple((call.name, call.arguments) for call in parsed.tool_calls)
    return Answer(parsed.content or "", parsed.reasoning or "", calls, reason, len(ids))


def _texts(pieces: Sequence[bytes]) -> list[str]:
    """The text each id adds; bytes of an unfinished character wait for the id that ends it."""
    texts, held = [], b""
    for piece in pieces:
        held += piece
        try:
            texts.append(held.decode())
            held = b""
        except UnicodeDecodeError:
            texts.append("")
    if texts and held:
        texts[-1] += held.decode(errors="replace")
    return texts


def ask_endpoint(
    items: Sequence[Item], url: str, name: str, sampling: Sampling, concurrency: int
) -> Iterator[Answer]:
    """In order; raises urllib's errors for a server that cannot be reached or refuses."""

    def ask(numbered: tuple[int, Item]) -> Answer:
        number, item = numbered
        body: dict[str, Any] = {
            "model": name,
            "messages": item.messages,
            "max_tokens": item.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed + number,
        }
        if item.tools:
            body["tools"] = item.tools
        return _post(f"{url.rstrip('/')}/v1/chat/completions", body)

    with ThreadPoolExecutor(concurrency) as pool:
        yield from pool.map(ask, enumerate(items))


def _post(url: str, body: dict[str, Any]) -> Answer:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        reply = json.load(response)
    [choice] = reply["choices"]
    message = choice["message"]
    calls = tuple(
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return Answer(
        message.get("content") or "",
        reasoning,
        calls,
        "stop" if choice["finish_reason"] == "tool_calls" else choice["finish_reason"],
        reply["usage"]["completion_tokens"],
    )
