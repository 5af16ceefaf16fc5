"""One conversation, as the product's chat room knows conversations, and what the quiz checks."""

from __future__ import annotations

from dataclasses import dataclass

from m2serve.chat.messages import Assistant, Conversation, System, Turn, User
from m2serve.chat.tools import Tool

NO_SYSTEM = System()  # rendered as the default identity


@dataclass(frozen=True)
class Sample:
    """`turns` end with the assistant's. `answer` is what a right last turn says, for the quiz:
    a letter, a value, or "" where the last turn itself is compared.
    """

    kind: str
    turns: tuple[Turn, ...]
    system: System = NO_SYSTEM
    tools: tuple[Tool, ...] = ()
    category: str = ""
    answer: str = ""

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.system, self.turns)

    @property
    def prompt(self) -> Conversation:
        """Without the last turn, which is the model's to say."""
        return Conversation(self.system, self.turns[:-1])

    @property
    def last(self) -> Assistant:
        turn = self.turns[-1]
        assert isinstance(turn, Assistant)
        return turn


def exchange(
    kind: str,
    question: str,
    reasoning: str,
    content: str,
    *,
    system: System = NO_SYSTEM,
    category: str = "",
    answer: str = "",
) -> Sample:
    """One question and its answer."""
    turns = (User(question), Assistant(content, reasoning))
    return Sample(kind, turns, system, category=category, answer=answer)
