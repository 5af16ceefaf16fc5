"""YAML text from plain data, as every reader takes it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

# YAML 1.1 and 1.2 disagree on which of these are numbers ("1e5"): always quoted.
_LIKE_NUMBER = re.compile(r"[-+]?\.?\d")
# Line ends to some readers and text to others: only double quotes write them as escapes.
_OTHER_LINE_END = re.compile("[\r\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Items of a list stand deeper than its key."""
        super().increase_indent(flow, False)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else "'" if _LIKE_NUMBER.match(text) else None
    style = '"' if _OTHER_LINE_END.search(text) else style
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def yaml_text(documents: Iterable[dict[str, Any]], comments: Iterable[str] = ()) -> str:
    """The documents in order, keys as they come, comments (without a sign) above the first."""
    head = "".join(f"# {line}\n" if line else "#\n" for line in comments)
    body: str = yaml.dump_all(
        list(documents),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=4096,
        explicit_start=bool(head),
    )
    return head + body
