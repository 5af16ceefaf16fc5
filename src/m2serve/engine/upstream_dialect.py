"""What the HTTP APIs of different engines have to be turned into. Pure: JSON in, JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from m2serve.engine.request import (
    EngineOutput,
    EngineRequest,
    StructuredOutput,
    TokenLogprob,
)
from m2serve.errors import EngineDeadError, RequestError

MAX_MESSAGE_CHARS = 500


class UpstreamError(EngineDeadError):
    """An upstream cannot be reached, broke off, or answers what is not in its API."""


class UpstreamTimeoutError(UpstreamError):
    """It does not answer in time, which a busy machine may do now and then."""


class UpstreamBusyError(UpstreamError):
    """It answers, but takes no more requests now."""


class UpstreamRefusedError(UpstreamError):
    """Waiting does not help: a wrong key, or an API without token ids."""


class Reader(Protocol):
    """Reads one answer: `read` each JSON object as it comes, `finish` behind the last."""

    def read(self, data: dict[str, Any]) -> EngineOutput | None:
        """Raises UpstreamError for what is not in the API, RequestError for a refusal."""

    def finish(self) -> EngineOutput | None:
        """What was held back; the answer is complete if an output had a finish_reason."""


class Dialect(Protocol):
    @property
    def path(self) -> str: ...

    def body(self, request: EngineRequest, model: str) -> dict[str, Any]:
        """`stream` in it says how the answer comes. Raises RequestError for what cannot be said."""

    def reader(self, request: EngineRequest) -> Reader: ...


def refuse_forced(request: EngineRequest) -> None:
    if request.sampling.forced_token_ids is not None:
        raise RequestError("forced_token_ids needs the own engine; an upstream chooses itself")


def refuse_free_start(output: StructuredOutput) -> None:
    """These APIs hold the answer to its form, whatever the model would rather begin with."""
    if output.free_token_ids:
        raise RequestError(
            "structured output together with tools needs the own engine, which lets the model "
            "choose between them; with an upstream send one of both, or tool_choice 'none'",
            param="response_format",
            code="unsupported_field",
        )


class ThinkingWatch:
    """Notices that an upstream held the thinking to the form that was meant for the answer.

    Whether it knows where thinking ends is a setting of its server that no API tells.
    """

    def __init__(self, request: EngineRequest, setting: str) -> None:
        output = request.sampling.structured_output
        self._ends = frozenset(output.after_token_ids) if output is not None else frozenset()
        self._setting = setting

    def see(self, output: EngineOutput) -> None:
        """Raises RequestError when the answer stops before its thinking has ended."""
        if not self._ends.isdisjoint(output.token_ids):
            self._ends = frozenset()
        if self._ends and output.finish_reason == "stop":
            raise RequestError(
                "The answer ended before its thinking did, so it does not have the form asked for. "
                f"Start the engine behind this server with {self._setting}.",
                code="engine_error",
                status=502,
            )


def raise_error_event(data: dict[str, Any]) -> None:
    """Raise what an event with an "error" says; return for any other event."""
    error = data.get("error")
    if error is None:
        return
    message: object = error
    code: object = 500
    if isinstance(error, dict):
        message, code = error.get("message"), error.get("code")
    if isinstance(code, int) and 400 <= code < 500 and code not in (401, 403, 404, 429):
        raise refused(str(message), code)
    raise UpstreamError(f"the upstream engine failed: {str(message)[:MAX_MESSAGE_CHARS]}")


def refused(message: str, status: int) -> RequestError:
    return RequestError(
        f"The engine behind this server refused the request: {message[:MAX_MESSAGE_CHARS]}",
        status=status if status in (400, 413, 422) else 400,
    )


def token_id_list(value: object) -> list[int]:
    """Raises UpstreamRefusedError when it is no list of ids."""
    try:
        return msgspec.convert(value, list[int])
    except msgspec.ValidationError as error:
        raise UpstreamRefusedError(
            "the upstream sends no token ids with its answer; vLLM from 0.10.2 on, SGLang and "
            "m2serve do"
        ) from error


def position(
    chosen: tuple[int, float], alternatives: Sequence[tuple[int, float]]
) -> list[TokenLogprob]:
    """One position: the chosen id, then the alternatives from the most likely down.

    The rank of a chosen id that is not among the alternatives is the lowest it can be.
    """
    ordered = sorted(alternatives, key=lambda pair: -pair[1])
    rank = next(
        (i for i, (token_id, _) in enumerate(ordered, 1) if token_id == chosen[0]),
        1 + sum(logprob >= chosen[1] for _, logprob in ordered),
    )
    others = [
        TokenLogprob(token_id, logprob, i) for i, (token_id, logprob) in enumerate(ordered, 1)
    ]
    return [TokenLogprob(chosen[0], chosen[1], rank), *others]
