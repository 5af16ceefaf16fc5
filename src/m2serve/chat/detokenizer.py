"""Token ids to text, one id at a time, without ever showing half a character."""

from __future__ import annotations

import codecs

from m2serve.chat.tokenizer import Tokenizer


class Detokenizer:
    """Text of a growing sequence of ids; constant work per byte.

    The deltas joined are the decoding of all ids: bytes of an incomplete character are held back
    until it is complete, and become U+FFFD when it never is. The delta of an id is also its span:
    `num_chars` before and after `push` are where the text of that id starts and ends (an id that
    only begins a character has an empty span).
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        """`skip_special` drops the tokenizer's `hidden_ids`."""
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = tokenizer.hidden_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.num_chars = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this id."""
        if token_id in self._skipped:
            return ""
        return self._count(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """What the held bytes come to at the end of the sequence: U+FFFD or nothing."""
        return self._count(self._decoder.decode(b"", final=True))

    def _count(self, delta: str) -> str:
        self.num_chars += len(delta)
        return delta
