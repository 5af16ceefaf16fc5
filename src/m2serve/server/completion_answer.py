"""Plain completions from the updates of a generation: whole, and as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from m2serve.chat.events import ContentDelta
from m2serve.chat.tokenizer import Tokenizer
from m2serve.server.choice import ChoiceUpdate
from m2serve.server.generation import Generation
from m2serve.server.job import Job, usage_of
from m2serve.server.logprobs import Position, completion_logprobs, prompt_logprobs
from m2serve.server.responses import DONE, KEEP_ALIVE, event
from m2serve.server.wire import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprobs,
)


@dataclass(frozen=True)
class CompletionOptions:
    """`echo_only`: max_tokens was 0, so the one token that was generated is not shown.

    `logprobs` without echo are of the generated tokens; with echo, of the prompt's, too.
    `prompt_logprobs`: vLLM's form of them is asked for.
    """

    echo: bool = False
    echo_only: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass
class _Part:
    """A piece of one choice; parts joined in order are the whole choice."""

    text: str
    token_ids: list[int]
    logprobs: CompletionLogprobs | None
    end: ChoiceUpdate


async def whole_answer(
    job: Job, generation: Generation, tokenizer: Tokenizer, options: CompletionOptions
) -> Completion:
    reader = _PartReader(job, tokenizer, options)
    parts: list[list[_Part]] = [[] for _ in job.tracks]
    of_prompts: dict[int, PromptLogprobs] = {}
    async for index, update in generation.updates():
        parts[index].append(reader.part(index, update))
        if options.prompt_logprobs and update.prompt_logprobs is not None:
            of_prompts[index] = prompt_logprobs(tokenizer, update.prompt_logprobs)
    choices = [
        CompletionChoice(
            index=index,
            text="".join(part.text for part in choice),
            logprobs=_joined([part.logprobs for part in choice]),
            finish_reason=choice[-1].end.finish_reason,
            stop_reason=choice[-1].end.stop_reason,
            token_ids=_ids(choice) if options.return_token_ids else UNSET,
            prompt_token_ids=(
                job.tracks[index].request.prompt_token_ids if options.return_token_ids else UNSET
            ),
            prompt_logprobs=of_prompts.get(index, UNSET),
        )
        for index, choice in enumerate(parts)
    ]
    return _completion(job, choices, usage=usage_of(job, with_reasoning=False))


async def answer_chunks(
    job: Job,
    generation: Generation,
    tokenizer: Tokenizer,
    options: CompletionOptions,
    keep_alive_s: float,
) -> AsyncGenerator[bytes, None]:
    """Server-sent events, with a comment whenever nothing has come for `keep_alive_s`."""
    reader = _PartReader(job, tokenizer, options)
    while not generation.complete:
        arrival = await generation.next(keep_alive_s)
        if arrival is None:
            yield KEEP_ALIVE
            continue
        index, update = arrival
        is_first = not reader.has_begun(index)
        part = reader.part(index, update)
        shows_ids = options.return_token_ids
        if part.text or update.finish_reason or part.logprobs or shows_ids:
            choice = CompletionChoice(
                index=index,
                text=part.text,
                logprobs=part.logprobs,
                finish_reason=update.finish_reason,
                stop_reason=update.stop_reason,
                token_ids=part.token_ids if shows_ids else UNSET,
                prompt_token_ids=(
                    job.tracks[index].request.prompt_token_ids if shows_ids and is_first else UNSET
                ),
            )
            yield event(_completion(job, [choice], **_running_usage(job, options, index)))
    if options.include_usage:
        yield event(_completion(job, [], usage=usage_of(job, with_reasoning=False)))
    yield DONE


class _PartReader:
    """Reads updates into parts; the first part of a choice begins with the echo of its prompt."""

    def __init__(self, job: Job, tokenizer: Tokenizer, options: CompletionOptions) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._options = options
        self._num_echo_chars: dict[int, int] = {}

    def has_begun(self, index: int) -> bool:
        return index in self._num_echo_chars

    def part(self, index: int, update: ChoiceUpdate) -> _Part:
        echo = None if self.has_begun(index) else self._echo(index, update)
        if self._options.echo_only:
            generated = _Part("", [], None, update)
        else:
            generated = self._generated(index, update)
        if echo is None:
            return generated
        return _Part(
            echo.text + generated.text,
            generated.token_ids,
            _joined([echo.logprobs, generated.logprobs]),
            update,
        )

    def _echo(self, index: int, update: ChoiceUpdate) -> _Part | None:
        self._num_echo_chars[index] = 0
        if not self._options.echo:
            return None
        ids = self._job.tracks[index].request.prompt_token_ids
        pieces = [self._tokenizer.decode([id]) for id in ids]
        text = self._tokenizer.decode(ids)
        self._num_echo_chars[index] = len(text)
        logprobs = None
        if self._options.logprobs and update.prompt_logprobs is not None:
            offsets = [0]
            for piece in pieces[:-1]:
                offsets.append(min(offsets[-1] + len(piece), len(text)))
            logprobs = self._logprobs(update.prompt_logprobs, offsets, ids)
        return _Part(text, [], logprobs, update)

    def _generated(self, index: int, update: ChoiceUpdate) -> _Part:
        text = "".join(event.text for event in update.events if isinstance(event, ContentDelta))
        logprobs = None
        if self._options.logprobs and update.logprobs is not None:
            shift = self._num_echo_chars[index]
            offsets = [shift + offset for offset in update.text_offsets]
            logprobs = self._logprobs(update.logprobs, offsets, update.token_ids)
        return _Part(text, update.token_ids, logprobs, update)

    def _logprobs(
        self, positions: Sequence[Position | None], offsets: Sequence[int], ids: list[int]
    ) -> CompletionLogprobs:
        as_ids = self._options.return_tokens_as_token_ids
        return completion_logprobs(self._tokenizer, positions, offsets, ids, as_token_ids=as_ids)


def _joined(pieces: list[CompletionLogprobs | None]) -> CompletionLogprobs | None:
    given = [piece for piece in pieces if piece is not None]
    if not given:
        return None
    return CompletionLogprobs(
        text_offset=[offset for piece in given for offset in piece.text_offset],
        token_logprobs=[logprob for piece in given for logprob in piece.token_logprobs],
        tokens=[token for piece in given for token in piece.tokens],
        top_logprobs=[top for piece in given for top in piece.top_logprobs],
    )


def _ids(parts: list[_Part]) -> list[int]:
    return [id for part in parts for id in part.token_ids]


def _running_usage(job: Job, options: CompletionOptions, index: int) -> dict[str, object]:
    if options.continuous_usage:
        return {"usage": usage_of(job, with_reasoning=False, choice=index)}
    return {"usage": None} if options.include_usage else {}


def _completion(job: Job, choices: list[CompletionChoice], **more: object) -> Completion:
    return Completion(
        id=job.id,
        created=job.created,
        model=job.model,
        system_fingerprint=job.fingerprint,
        choices=choices,
        **more,  # type: ignore[arg-type]
    )
