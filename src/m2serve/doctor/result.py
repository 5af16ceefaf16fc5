"""What a check found. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from m2serve.spec.known_issues import issues_with_symptom
from m2serve.spec.situation import Situation

Verdict = Literal["ok", "warn", "fail", "skipped"]
MAX_SHOWN_CHARS = 400


@dataclass(frozen=True)
class CheckResult:
    """`sent` and `received` are bounded texts; `detail` is one sentence; `issues` are ids of known
    issues with what was seen, that the known facts of the deployment do not rule out.
    """

    name: str
    verdict: Verdict
    sent: str
    received: str
    detail: str
    issues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """What is the same in every result of one check: its name, what it sent, and to whom."""

    name: str
    sent: str
    situation: Situation

    def ok(self, received: str, detail: str) -> CheckResult:
        return CheckResult(self.name, "ok", self.sent, shown(received), detail)

    def warn(self, received: str, detail: str, *symptoms: str) -> CheckResult:
        return CheckResult(
            self.name, "warn", self.sent, shown(received), detail, self._issues(symptoms)
        )

    def fail(self, received: str, detail: str, *symptoms: str) -> CheckResult:
        return CheckResult(
            self.name, "fail", self.sent, shown(received), detail, self._issues(symptoms)
        )

    def skip(self, detail: str) -> CheckResult:
        return CheckResult(self.name, "skipped", self.sent, "", detail)

    def _issues(self, symptoms: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(issue.id for issue in issues_with_symptom(symptoms, self.situation))


def shown(value: Any) -> str:
    """Text, or JSON of anything else, cut in its middle to MAX_SHOWN_CHARS, without control
    characters.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > MAX_SHOWN_CHARS:
        half = MAX_SHOWN_CHARS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
