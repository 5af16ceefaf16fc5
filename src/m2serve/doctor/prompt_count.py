"""How many tokens M2's prompt has: rendered and encoded here, to hold an endpoint's count against.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2serve.chat.identity import model_identity
from m2serve.chat.messages import normalize
from m2serve.chat.renderer import render
from m2serve.chat.tokenizer import Tokenizer
from m2serve.chat.tools import parse_tools
from m2serve.doctor.questions import WEATHER_TOOL

_IDENTITY = "You are a helpful assistant. Your name is MiniMax-M2.7 and is built by MiniMax."
# This prompt's length with the published tokenizer, the same for every release.
PUBLISHED_CASE = "system and user"
PUBLISHED_COUNT = 39

_QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 2}'},
}
_THINKING = "The user wants the weather of Paris, so I ask the tool for two days."
_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 24 degrees"}


@dataclass(frozen=True)
class PromptCase:
    """A conversation whose prompt has a known length. `tells` says what a wrong count means."""

    name: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    tells: str = ""


CASES = (
    PromptCase(
        PUBLISHED_CASE,
        ({"role": "system", "content": _IDENTITY}, {"role": "user", "content": "test"}),
        tells="another tokenizer or template",
    ),
    PromptCase(
        "user alone", ({"role": "user", "content": "test"},), tells="another default system text"
    ),
    PromptCase(
        "tools",
        ({"role": "system", "content": "Be brief."}, _QUESTION),
        (WEATHER_TOOL,),
        tells="tools written in another way",
    ),
    PromptCase(
        "two turns",
        (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!", "reasoning_content": _THINKING},
            {"role": "user", "content": "Again"},
        ),
        tells="old thinking kept, or turns written in another way",
    ),
    PromptCase(
        "tool loop",
        (
            {"role": "system", "content": "Be brief."},
            _QUESTION,
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": _THINKING,
                "tool_calls": [_CALL],
            },
            _RESULT,
        ),
        (WEATHER_TOOL,),
        tells="the thinking of the running tool loop dropped, or calls written in another way",
    ),
)


class PromptCounter:
    """Counts with a checkpoint's tokenizer and default system text."""

    def __init__(self, tokenizer: Tokenizer, identity: str) -> None:
        self._tokenizer = tokenizer
        self._identity = identity

    @classmethod
    def load(cls, folder: Path) -> PromptCounter:
        """From a folder with tokenizer.json and, beside it, the template; ConfigError."""
        return cls(Tokenizer.load(folder), model_identity(folder))

    def count(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
    ) -> int:
        """Tokens of the whole prompt, generation prompt included."""
        segments = render(
            normalize(list(messages)), parse_tools(list(tools)), model_identity=self._identity
        )
        return len(self._tokenizer.encode_segments(segments))

    def count_text(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self._tokenizer.encode(text))
