"""How many of the generated tokens were reasoning: `usage` reports it."""

from __future__ import annotations

from m2serve.chat.control import ControlTokens


class ReasoningCounter:
    """Counts ids between `begin` and `end`; control tokens are not counted."""

    def __init__(self, control: ControlTokens | None, *, in_reasoning: bool) -> None:
        self._control_ids = set(control.text_of_ids()) if control else set()
        self._num_ids = 0
        self._block_start = 0
        self._begin: int | None = 0 if in_reasoning else None
        self._num_ended = 0

    @property
    def num_tokens(self) -> int:
        return self._num_ended + self._num_since_begin(self._num_ids)

    def push(self, token_id: int | None, *, begins_block: bool) -> None:
        if begins_block:
            self._block_start = self._num_ids
        if token_id is not None and token_id not in self._control_ids:
            self._num_ids += 1

    def begin(self) -> None:
        if self._begin is None:
            self._begin = self._num_ids

    def end(self) -> None:
        self._end_at(self._num_ids)

    def end_at_block(self) -> None:
        """Reasoning ended where the last tool-call block began, which is known only now."""
        self._end_at(self._block_start)

    def _end_at(self, index: int) -> None:
        self._num_ended += self._num_since_begin(index)
        self._begin = None

    def _num_since_begin(self, index: int) -> int:
        return 0 if self._begin is None else index - self._begin
