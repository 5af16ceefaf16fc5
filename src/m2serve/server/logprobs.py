"""Logprobs in the three forms clients know: chat, plain completions, and vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.request import TokenLogprob
from m2serve.server.wire import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)

Position = list[TokenLogprob]
MIN_LOGPROB = -9999.0  # JSON has no -inf; vLLM sends this, too


def chat_logprobs(tokenizer: Tokenizer, positions: Sequence[Position]) -> ChatLogprobs:
    """The chosen token stands first at each position, its alternatives behind it."""
    content = []
    for chosen, *alternatives in positions:
        top = [_top(tokenizer, alternative) for alternative in alternatives]
        own = _top(tokenizer, chosen)
        content.append(ChatLogprob(own.token, own.logprob, own.bytes, top))
    return ChatLogprobs(content)


def completion_logprobs(
    tokenizer: Tokenizer,
    positions: Sequence[Position | None],
    offsets: Sequence[int],
    ids: list[int],
    *,
    as_token_ids: bool = False,
) -> CompletionLogprobs:
    """`offsets`: characters from the start of the choice's text. None: no token came before.

    `top_logprobs` also holds the chosen token, as OpenAI's did. `as_token_ids` writes tokens as
    "token_id:N", vLLM's form, in which no two of them are the same.
    """

    def name(token_id: int) -> str:
        return f"token_id:{token_id}" if as_token_ids else tokenizer.decode([token_id])

    return CompletionLogprobs(
        text_offset=list(offsets),
        token_logprobs=[None if not at else _finite(at[0].logprob) for at in positions],
        tokens=[name(id) for id in ids],
        top_logprobs=[_top_dict(name, at) for at in positions],
    )


def prompt_logprobs(tokenizer: Tokenizer, positions: Sequence[Position | None]) -> PromptLogprobs:
    return [
        at
        if at is None
        else {
            one.token_id: PromptLogprob(
                _finite(one.logprob), one.rank, tokenizer.decode([one.token_id])
            )
            for one in at
        }
        for at in positions
    ]


def _top(tokenizer: Tokenizer, one: TokenLogprob) -> TopLogprob:
    data = tokenizer.token_bytes(one.token_id)
    return TopLogprob(data.decode(errors="replace"), _finite(one.logprob), list(data))


def _top_dict(name: Callable[[int], str], at: Position | None) -> dict[str, float] | None:
    if not at:
        return None
    # Two ids may have one text; the more likely one, which comes later here, stays.
    return {name(one.token_id): _finite(one.logprob) for one in reversed(at)}


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
