"""The ids of begin, end and unknown, and which file said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2serve.spec.shape import load_json_object


@dataclass(frozen=True)
class SpecialIds:
    """`config_*` as in config.json, `generation_*` as in generation_config.json, the others from
    the tokenizer's files; None where a file does not say. A list of ids becomes a tuple."""

    bos: int | None
    eos: int | None
    unk: int | None
    generation_bos: int | None
    generation_eos: tuple[int, ...]
    config_bos: int | None
    config_eos: tuple[int, ...]


def special_ids(
    folder: Path, config: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> SpecialIds:
    """Collect the ids; raises ConfigError when tokenizer_config.json is no JSON object."""
    path = folder / "tokenizer_config.json"
    tokenizer = load_json_object(path) if path.is_file() else {}
    by_text = _added_tokens(tokenizer)
    return SpecialIds(
        bos=by_text.get(_text(tokenizer.get("bos_token"))),
        eos=by_text.get(_text(tokenizer.get("eos_token"))),
        unk=by_text.get(_text(tokenizer.get("unk_token"))),
        generation_bos=next(iter(_ids(generation_config.get("bos_token_id"))), None),
        generation_eos=_ids(generation_config.get("eos_token_id")),
        config_bos=next(iter(_ids(config.get("bos_token_id"))), None),
        config_eos=_ids(config.get("eos_token_id")),
    )


def _added_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    added = tokenizer.get("added_tokens_decoder")
    if not isinstance(added, Mapping):
        return {}
    return {_text(token): int(number) for number, token in added.items() if number.isdecimal()}


def _text(token: Any) -> str:
    """Text of a token written as a string or as an object with its flags."""
    value = token.get("content") if isinstance(token, Mapping) else token
    return value if isinstance(value, str) else ""


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(number for number in values if type(number) is int)
