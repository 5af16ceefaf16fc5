"""The system text M2 is given when the client sends none; it differs between the versions."""

from __future__ import annotations

import json
from pathlib import Path

from m2serve.errors import ConfigError

DEFAULT_IDENTITY = "You are a helpful assistant. Your name is MiniMax-M2.5 and is built by MiniMax."
MAX_TEMPLATE_BYTES = 1024 * 1024

_OPENINGS = ('model_identity = "', "model_identity = '")


def model_identity(folder: Path) -> str:
    """The default in FOLDER's chat template (chat_template.jinja, or in tokenizer_config.json).

    The template is only searched for `model_identity = "..."`, never run. DEFAULT_IDENTITY when
    there is no template or no such line. Raises ConfigError for a file too large or no JSON.
    """
    template = _template(folder)
    for opening in _OPENINGS:
        _, found, rest = template.partition(opening)
        text, closed, _ = rest.partition(opening[-1])
        if found and closed and text and "\n" not in text and "\\" not in text:
            return text
    return DEFAULT_IDENTITY


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path)
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return ""
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    template = config.get("chat_template") if isinstance(config, dict) else None
    return template if isinstance(template, str) else ""


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_TEMPLATE_BYTES} bytes")
    return path.read_bytes().decode("utf-8", errors="replace")
