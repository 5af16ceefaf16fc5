"""The messages between the server's process and the engine's, and how they lie on the socket.

A frame is its length (four bytes, big-endian) and one msgpack message, whose tag says which. No
torch, no pickle.
"""

from __future__ import annotations

import struct

import msgspec

from m2serve.engine.config import EngineConfig
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats

MAX_FRAME_BYTES = 256 * 1024 * 1024
HEADER_BYTES = 4
_HEADER = struct.Struct(">I")


class FrameError(Exception):
    """A frame is larger than MAX_FRAME_BYTES or holds no message of the expected direction."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first frame to the engine."""

    config: EngineConfig


class Add(msgspec.Struct, frozen=True, tag=True):
    request: EngineRequest


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Ids that are unknown or have finished meanwhile are passed over."""

    request_ids: list[str]


class LoadProgress(msgspec.Struct, frozen=True, tag=True):
    """`fraction` of the weights that are loaded, 0 to 1."""

    fraction: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A token has been generated."""

    info: EngineInfo


class Outputs(msgspec.Struct, frozen=True, tag=True):
    outputs: list[EngineOutput]
    stats: EngineStats


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start: a sentence for the user and the name of the M2Error class."""

    message: str
    kind: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Sent every second by a thread of its own: steps finished, and layers computed of all steps,
    the unfinished one too, which may take minutes."""

    step: int
    layers: int = 0


ToEngine = Start | Add | Abort
FromEngine = LoadProgress | Ready | Outputs | Failed | Heartbeat

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """Header and message; raises FrameError when the message is too large."""
    payload = _encoder.encode(message)
    _check_size(len(payload))
    return _HEADER.pack(len(payload)) + payload


def payload_size(header: bytes) -> int:
    """Bytes that follow this header; raises FrameError when they are too many."""
    (size,) = _HEADER.unpack(header)
    _check_size(size)
    return int(size)


def decode_to_engine(payload: bytes) -> ToEngine:
    """Raises FrameError."""
    try:
        return _to_engine.decode(payload)
    except msgspec.MsgspecError as error:
        raise FrameError(f"not a message to the engine: {error}") from error


def decode_from_engine(payload: bytes) -> FromEngine:
    """Raises FrameError."""
    try:
        return _from_engine.decode(payload)
    except msgspec.MsgspecError as error:
        raise FrameError(f"not a message from the engine: {error}") from error


def _check_size(size: int) -> None:
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
