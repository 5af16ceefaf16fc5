"""Text to token ids and back, with a hard line between our control tokens and everyone's text.

Two tokenizers are built from one tokenizer.json: the full one, and one without added tokens that
every text from outside goes through, so `]~b]` in a message is five ordinary characters.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from m2serve.chat.control import CONTROL_TEXTS, ControlTokens
from m2serve.errors import ConfigError, RequestError

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_CACHE_CHARS = 4 * 1024 * 1024

_CONTROL_PATTERN = re.compile("(" + "|".join(re.escape(text) for text in CONTROL_TEXTS) + ")")


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt. Only in a trusted segment do control strings become control tokens."""

    text: str
    trusted: bool = False


class Tokenizer:
    """Byte-level BPE of one checkpoint; made by `load`, used from several threads."""

    def __init__(self, description: dict[str, Any]) -> None:
        """`description` is the parsed tokenizer.json; raises ConfigError when it is not M2's."""
        added = _added_tokens(description)
        self._full = _build(description)
        self._plain = _build({**description, "added_tokens": []})
        self.control = ControlTokens.from_added_tokens({t["content"]: t["id"] for t in added})
        self._control_ids = {text: id for id, text in self.control.text_of_ids().items()}
        self._added_bytes = {t["id"]: t["content"].encode() for t in added}
        self.hidden_ids = frozenset(t["id"] for t in added if _is_hidden(t))
        self.used_vocab_size = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        self._cache = _PieceCache(MAX_CACHE_CHARS)
        self._check(added)

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read FOLDER/tokenizer.json; raises ConfigError when it is absent, too large or wrong."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{folder} has no tokenizer.json; copy it from the original model")
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_TOKENIZER_BYTES} bytes")
        try:
            description = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(description, dict):
            raise ConfigError(f"{path} holds a JSON {type(description).__name__}, not an object")
        return cls(description)

    def encode(self, text: str, *, allow_control: bool = False) -> list[int]:
        """Token ids of a text. No BOS is added.

        `allow_control` lets any added token spelled in the text become its id: for a raw prompt
        whose author may write turns himself. Raises RequestError for text that is not Unicode.
        """
        return _encode(self._full if allow_control else self._plain, text)

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Token ids of a prompt.

        Text between two control tokens is encoded as one piece, across segment borders, because
        BPE merges across them: "ai\\n" followed by "\\n" is not the tokens of both.
        """
        ids: list[int] = []
        piece: list[str] = []
        for segment in segments:
            if not segment.trusted:
                piece.append(segment.text)
                continue
            for part in _CONTROL_PATTERN.split(segment.text):
                if part not in self._control_ids:
                    piece.append(part)
                    continue
                ids.extend(self._encode_piece("".join(piece)))
                ids.append(self._control_ids[part])
                piece.clear()
        ids.extend(self._encode_piece("".join(piece)))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the ids, without `hidden_ids` if `skip_special`; no UTF-8 becomes U+FFFD."""
        skipped: frozenset[int] = self.hidden_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(id) for id in ids if id not in skipped)
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for; empty for an id no token has."""
        added = self._added_bytes.get(token_id)
        if added is not None:
            return added
        token = self._plain.id_to_token(token_id) or ""
        try:
            return bytes(map(_BYTE_OF_CHARACTER.__getitem__, token))
        except KeyError:  # a token outside the byte alphabet stands for its own text
            return token.encode()

    def _encode_piece(self, text: str) -> Sequence[int]:
        if not text:
            return ()
        ids = self._cache.get(text)
        if ids is None:
            ids = array("I", _encode(self._plain, text))
            self._cache.put(text, ids)
        return ids

    def _check(self, added: list[dict[str, Any]]) -> None:
        decoder = self._full.decoder
        if decoder is None or "ByteLevel" not in type(decoder).__name__:
            raise ConfigError("the decoder in tokenizer.json is not ByteLevel; MiniMax-M2's is")
        for token in added:
            if not self._added_bytes.keys().isdisjoint(self.encode(token["content"])):
                raise ConfigError(
                    f"{token['content']!r} in plain text becomes an added token; the ordinary "
                    "vocabulary in tokenizer.json must not hold added tokens"
                )


class _PieceCache:
    """Least recently used texts and their ids, bounded by the number of characters held."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._num_chars = 0
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> array[int] | None:
        with self._lock:
            ids = self._ids.get(text)
            if ids is not None:
                self._ids.move_to_end(text)
            return ids

    def put(self, text: str, ids: array[int]) -> None:
        with self._lock:
            if text in self._ids or len(text) > self._max_chars:
                return
            self._ids[text] = ids
            self._num_chars += len(text)
            while self._num_chars > self._max_chars:
                oldest, _ = self._ids.popitem(last=False)
                self._num_chars -= len(oldest)


def _added_tokens(description: dict[str, Any]) -> list[dict[str, Any]]:
    added = description.get("added_tokens")
    if not isinstance(added, list):
        raise ConfigError("tokenizer.json has no list of added_tokens")
    for token in added:
        if (
            not isinstance(token, dict)
            or not isinstance(token.get("content"), str)
            or not isinstance(token.get("id"), int)
            or token["id"] < 0
        ):
            raise ConfigError(f"added_tokens in tokenizer.json holds {token!r}, not an id and text")
    return added


def _is_hidden(token: dict[str, Any]) -> bool:
    """Marks of structure, such as `[e~[`, are never shown.

    A token shaped as a word in angle brackets, such as `<filename>`, is: the model also writes it
    when it means the placeholder in a usage line.
    """
    text: str = token["content"]
    return bool(token.get("special")) and not (text.startswith("<") and text.endswith(">"))


def _build(description: dict[str, Any]) -> FastTokenizer:
    try:
        tokenizer = FastTokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises no narrower class
        raise ConfigError(f"tokenizer.json cannot be used: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer: FastTokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds {text[error.start]!a} at character {error.start}, half of a surrogate "
            "pair; send valid Unicode"
        ) from error
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: the printable character that stands for each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
