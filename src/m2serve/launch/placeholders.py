"""What only a node knows, as it stands in the texts of a Launch: {node0_ip}, {this_ip}, {nic} and
{cache}, the folder on the host that keeps downloaded weights. Pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping

_PLACEHOLDER = re.compile(r"\{(node0_ip|this_ip|nic|cache)\}")
_SHELL = {"node0_ip": "NODE0_IP", "this_ip": "THIS_IP", "nic": "NIC", "cache": "CACHE"}


def placeholders_in(texts: Iterable[str]) -> set[str]:
    """Names of all placeholders in the texts."""
    return {name for text in texts for name in _PLACEHOLDER.findall(text)}


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with the placeholders that have a value; the others stay."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def render(text: str, literal: Callable[[str], str], variables: Mapping[str, str]) -> str:
    """Literal parts through `literal`, each placeholder as `variables` writes it."""
    parts = _PLACEHOLDER.split(text)
    return "".join(
        variables[part] if index % 2 else literal(part) for index, part in enumerate(parts)
    )


def shell_word(text: str) -> str:
    """One word of a shell command; placeholders become variables (NODE0_IP, THIS_IP, NIC, CACHE).

    Whatever the text holds, the shell reads back exactly that text as a single word.
    """
    variables = {name: f'"${{{variable}}}"' for name, variable in _SHELL.items()}
    return render(text, lambda part: shlex.quote(part) if part else "", variables) or "''"
