"""The control tokens of MiniMax-M2: the only strings through which a prompt has structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m2serve.errors import ConfigError

BOS = "]~!b["
TURN_START = "]~b]"
TURN_END = "[e~["
THINK_START = "<think>"
THINK_END = "</think>"
CALL_START = "<minimax:tool_call>"
CALL_END = "</minimax:tool_call>"

_TEXTS = {
    "bos": BOS,
    "turn_start": TURN_START,
    "turn_end": TURN_END,
    "think_start": THINK_START,
    "think_end": THINK_END,
    "call_start": CALL_START,
    "call_end": CALL_END,
}


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the control tokens. `turn_end` is the end of a turn and of generation (eos)."""

    bos: int
    turn_start: int
    turn_end: int
    think_start: int
    think_end: int
    call_start: int
    call_end: int

    @classmethod
    def from_added_tokens(cls, ids: Mapping[str, int]) -> ControlTokens:
        """Look the ids up by content; raises ConfigError naming a token that is missing."""
        for text in _TEXTS.values():
            if text not in ids:
                raise ConfigError(
                    f"tokenizer.json has no added token {text!r}; it is not MiniMax-M2's tokenizer"
                )
        return cls(**{name: ids[text] for name, text in _TEXTS.items()})

    def text_of_ids(self) -> dict[int, str]:
        return {getattr(self, name): text for name, text in _TEXTS.items()}


CONTROL_TEXTS = tuple(_TEXTS.values())
