"""Who may wait for the engine. Pure bookkeeping: no clock, no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from m2serve.errors import OverloadedError


class Ticket:
    """One sequence's place in the queue, left when its first token has come or it has ended."""

    def __init__(self, admission: Admission, num_tokens: int) -> None:
        self._admission: Admission | None = admission
        self._num_tokens = num_tokens

    def leave(self) -> None:
        """Safe to call again."""
        if self._admission is not None:
            self._admission.num_queued_reqs -= 1
            self._admission.num_queued_tokens -= self._num_tokens
            self._admission = None


class Admission:
    """Counts sequences that have no token yet, and the tokens of their prompts; 0 is no limit.

    A request that finds nobody waiting is always admitted, however large: else it never could be.
    """

    def __init__(
        self,
        max_num_queued_reqs: int,
        max_num_queued_tokens: int,
        on_reject: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._max_reqs = max_num_queued_reqs
        self._max_tokens = max_num_queued_tokens
        self._on_reject = on_reject
        self.num_queued_reqs = 0
        self.num_queued_tokens = 0

    def admit(self, prompt_tokens: Sequence[int]) -> list[Ticket]:
        """A ticket for each sequence, given the lengths of their prompts; or OverloadedError."""
        self.check(len(prompt_tokens), sum(prompt_tokens))
        self.num_queued_reqs += len(prompt_tokens)
        self.num_queued_tokens += sum(prompt_tokens)
        return [Ticket(self, count) for count in prompt_tokens]

    def check(self, num_reqs: int = 1, num_tokens: int = 1) -> None:
        """Raise OverloadedError when so much does not fit; also called before a prompt is read."""
        if not self.num_queued_reqs:
            return
        if 0 < self._max_reqs < self.num_queued_reqs + num_reqs:
            self._reject("queued_reqs", f"{self.num_queued_reqs} sequences wait for the engine")
        if 0 < self._max_tokens < self.num_queued_tokens + num_tokens:
            self._reject("queued_tokens", f"{self.num_queued_tokens} tokens wait for the engine")

    def _reject(self, reason: str, sentence: str) -> None:
        self._on_reject(reason)
        raise OverloadedError(f"{sentence}, more are not queued. Send the request again later.")
