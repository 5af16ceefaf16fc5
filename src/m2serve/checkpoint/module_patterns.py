"""Which modules an ignore, exclude or target list of a quantisation config means.

Three kinds of entry: `re:` a regular expression from the start of the module's name; a wildcard
(`*`, `?`) against the whole name; anything else, dotted components that occur in the name next to
each other, so `gate` means the router and never gate_proj. transformers says `mlp` where the
checkpoint says `block_sparse_moe`; an entry may use either.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from m2serve.errors import CheckpointError

MAX_PATTERNS = 1 << 20
MAX_PATTERN_CHARS = 1000
# Matching time grows with the power of the repetitions, and exponentially with a repeated group.
MAX_REPETITIONS = 6
_REPETITION = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")


class ModulePatterns:
    """A list of entries, compiled; raises CheckpointError naming an entry that is unusable."""

    def __init__(self, entries: Iterable[object], source: str) -> None:
        components: set[str] = set()
        expressions: list[str] = []
        for entry in entries:
            text = _checked(entry, source)
            if text.startswith("re:"):
                expressions.append(text[3:])
            elif "*" in text or "?" in text:
                expressions.append(fnmatch.translate(text))
            else:
                components.add(text.strip("."))
            if len(components) + len(expressions) > MAX_PATTERNS:
                raise CheckpointError(f"{source} has more than {MAX_PATTERNS} entries")
        self._components = components
        self._lengths = {text.count(".") + 1 for text in components}
        self._expression = re.compile("|".join(f"(?:{text})" for text in expressions))
        self._has_expression = bool(expressions)
        self._uses_alias = any("mlp" in text for text in (*components, *expressions))

    def match(self, module: str) -> bool:
        """Whether any entry means this module (`model.layers.0.self_attn.q_proj`)."""
        if self._match_one(module):
            return True
        alias = module.replace(".block_sparse_moe.", ".mlp.") if self._uses_alias else module
        return alias != module and self._match_one(alias)

    def _match_one(self, module: str) -> bool:
        if self._has_expression and self._expression.match(module):
            return True
        if not self._components:
            return False
        parts = module.split(".")
        return any(
            ".".join(parts[start : start + length]) in self._components
            for length in self._lengths
            for start in range(len(parts) - length + 1)
        )


def _checked(entry: object, source: str) -> str:
    if not isinstance(entry, str) or not 0 < len(entry) <= MAX_PATTERN_CHARS:
        raise CheckpointError(f"{source} has an entry that is no module name: {str(entry)[:80]!r}")
    if entry.startswith("re:"):
        if _REPEATED_GROUP.search(entry) or len(_REPETITION.findall(entry)) > MAX_REPETITIONS:
            raise CheckpointError(f"{source} has a pattern that repeats too much: {entry!r}")
        try:
            re.compile(entry[3:])
        except re.error as error:
            raise CheckpointError(f"{source} has a bad pattern {entry!r}: {error}") from error
    return entry
