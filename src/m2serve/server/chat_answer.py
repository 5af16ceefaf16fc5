"""Chat answers from the updates of a generation: whole, or as chunks that add up to the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from msgspec import UNSET
from msgspec.structs import replace

from m2serve.chat.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallStart,
    fold,
)
from m2serve.chat.tokenizer import Tokenizer
from m2serve.server.choice import ChoiceUpdate
from m2serve.server.generation import Generation
from m2serve.server.job import Job, usage_of
from m2serve.server.logprobs import Position, chat_logprobs, prompt_logprobs
from m2serve.server.responses import DONE, KEEP_ALIVE, event
from m2serve.server.wire import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Delta,
    FunctionCall,
    Message,
    PromptLogprobs,
    ToolCall,
)


@dataclass(frozen=True)
class ChatOptions:
    """What of an answer the client wants to see."""

    include_reasoning: bool = True
    return_token_ids: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass
class _Whole:
    events: list[Event] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Position] | None = None
    end: ChoiceUpdate = field(default_factory=ChoiceUpdate)

    def add(self, update: ChoiceUpdate) -> None:
        self.events += update.events
        self.token_ids += update.token_ids
        if update.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *update.logprobs]
        self.end = update


async def whole_answer(
    job: Job, generation: Generation, tokenizer: Tokenizer, options: ChatOptions
) -> ChatCompletion:
    wholes = [_Whole() for _ in job.tracks]
    of_prompt: PromptLogprobs | None = None
    async for index, update in generation.updates():
        wholes[index].add(update)
        if update.prompt_logprobs is not None and of_prompt is None:
            of_prompt = prompt_logprobs(tokenizer, update.prompt_logprobs)
    return ChatCompletion(
        id=job.id,
        created=job.created,
        model=job.model,
        system_fingerprint=job.fingerprint,
        choices=[_choice(i, whole, tokenizer, options) for i, whole in enumerate(wholes)],
        usage=usage_of(job, with_reasoning=True),
        prompt_logprobs=UNSET if of_prompt is None else of_prompt,
        prompt_token_ids=_prompt_ids(job, options) or UNSET,
    )


async def answer_chunks(
    job: Job,
    generation: Generation,
    tokenizer: Tokenizer,
    options: ChatOptions,
    keep_alive_s: float,
) -> AsyncGenerator[bytes, None]:
    """Server-sent events, with a comment whenever nothing has come for `keep_alive_s`."""
    writer = _ChunkWriter(job, tokenizer, options)
    while not generation.complete:
        arrival = await generation.next(keep_alive_s)
        if arrival is None:
            yield KEEP_ALIVE
            continue
        for chunk in writer.chunks(*arrival):
            yield event(chunk)
    if options.include_usage:
        yield event(writer.closing())
    yield DONE


def delta_of(event: Event, *, include_reasoning: bool) -> Delta | None:
    """None for what the client does not want."""
    match event:
        case ReasoningDelta(text):
            return Delta(reasoning_content=text, reasoning=text) if include_reasoning else None
        case ContentDelta(text):
            return Delta(content=text)
        case ToolCallStart(index, id, name):
            function = FunctionCall(arguments="", name=name)
            return Delta(tool_calls=[ToolCall(function, index=index, id=id, type="function")])
        case ToolArgumentsDelta(index, fragment):
            return Delta(tool_calls=[ToolCall(FunctionCall(arguments=fragment), index=index)])


class _ChunkWriter:
    """Turns updates into chunks; the first of each choice has the role and nothing else."""

    def __init__(self, job: Job, tokenizer: Tokenizer, options: ChatOptions) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._options = options
        self._begun: set[int] = set()

    def chunks(self, index: int, update: ChoiceUpdate) -> list[ChatChunk]:
        choices = self._choices(index, update)
        chunks = [self._chunk(choice) for choice in choices]
        if index not in self._begun:
            self._begun.add(index)
            role = ChatChunkChoice(index, Delta(role="assistant", content=""))
            ids = _prompt_ids(self._job, self._options) or UNSET
            chunks.insert(0, self._chunk(role, prompt_token_ids=ids))
        return chunks

    def closing(self) -> ChatChunk:
        """The chunk without choices that carries the usage of the whole request."""
        return self._new([], usage=usage_of(self._job, with_reasoning=True))

    def _choices(self, index: int, update: ChoiceUpdate) -> list[ChatChunkChoice]:
        deltas = [
            delta
            for event in update.events
            if (delta := delta_of(event, include_reasoning=self._options.include_reasoning))
        ]
        ids = update.token_ids if self._options.return_token_ids else []
        if not deltas and update.finish_reason is None and (ids or update.logprobs):
            deltas.append(Delta())
        choices = [ChatChunkChoice(index, delta) for delta in deltas]
        if update.finish_reason is not None:
            end = ChatChunkChoice(
                index,
                Delta(),
                finish_reason=update.finish_reason,
                stop_reason=update.stop_reason,
            )
            choices.append(end)
        if choices:
            logprobs = chat_logprobs(self._tokenizer, update.logprobs) if update.logprobs else None
            choices[0] = replace(choices[0], logprobs=logprobs, token_ids=ids or UNSET)
        return choices

    def _chunk(self, choice: ChatChunkChoice, **more: object) -> ChatChunk:
        if self._options.continuous_usage:
            more["usage"] = usage_of(self._job, with_reasoning=True, choice=choice.index)
        elif self._options.include_usage:
            more["usage"] = None
        return self._new([choice], **more)

    def _new(self, choices: list[ChatChunkChoice], **more: object) -> ChatChunk:
        job = self._job
        return ChatChunk(
            id=job.id,
            created=job.created,
            model=job.model,
            system_fingerprint=job.fingerprint,
            choices=choices,
            **more,  # type: ignore[arg-type]
        )


def _choice(index: int, whole: _Whole, tokenizer: Tokenizer, options: ChatOptions) -> ChatChoice:
    parsed = fold(whole.events)
    reasoning = parsed.reasoning if options.include_reasoning else None
    calls = [
        ToolCall(FunctionCall(call.arguments, call.name), id=call.id, type="function")
        for call in parsed.tool_calls
    ]
    message = Message(
        content=parsed.content,
        reasoning_content=reasoning,
        reasoning=reasoning,
        tool_calls=calls or UNSET,
    )
    assert whole.end.finish_reason is not None
    return ChatChoice(
        index=index,
        message=message,
        logprobs=None if whole.logprobs is None else chat_logprobs(tokenizer, whole.logprobs),
        finish_reason=whole.end.finish_reason,
        stop_reason=whole.end.stop_reason,
        token_ids=whole.token_ids if options.return_token_ids else UNSET,
    )


def _prompt_ids(job: Job, options: ChatOptions) -> list[int] | None:
    return job.tracks[0].request.prompt_token_ids if options.return_token_ids else None
