import msgspec
import pytest

from m2serve.engine import frames
from m2serve.engine.config import EngineConfig
from m2serve.engine.request import (
    EngineOutput,
    EngineRequest,
    EngineStats,
    SamplingParams,
    TokenLogprob,
)

SAMPLING = SamplingParams(
    max_tokens=5,
    seed=-3,
    logit_bias={7: 1.5},
    bad_words_ids=((1, 2), (3,)),
    allowed_token_ids=(1, 2),
)
TO_ENGINE = [
    frames.Start(EngineConfig(model_path="/m", dtype="float32")),
    frames.Add(
        EngineRequest(
            request_id="a", prompt_token_ids=[1, 70_000], sampling=SAMPLING, cache_salt=b"\x00\xff"
        )
    ),
    frames.Abort(["a", "b"]),
]
LOGPROBS = [[TokenLogprob(3, -0.5, 1), TokenLogprob(9, -2.25, 2)]]
FROM_ENGINE = [
    frames.LoadProgress(0.25),
    frames.Outputs(
        [EngineOutput(request_id="a", token_ids=[3], logprobs=LOGPROBS, finish_reason="stop")],
        EngineStats(step=3, kv_cache_usage=0.5),
    ),
    frames.Failed("no room", "ResourceError"),
    frames.Heartbeat(12, 7),
]


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda m: type(m).__name__)
def test_messages_to_the_engine_arrive_as_they_were(message: frames.ToEngine) -> None:
    assert frames.decode_to_engine(payload_of(message)) == message


@pytest.mark.parametrize("message", FROM_ENGINE, ids=lambda m: type(m).__name__)
def test_messages_from_the_engine_arrive_as_they_were(message: frames.FromEngine) -> None:
    assert frames.decode_from_engine(payload_of(message)) == message


def payload_of(message: frames.ToEngine | frames.FromEngine) -> bytes:
    frame = frames.encode_frame(message)
    header, payload = frame[: frames.HEADER_BYTES], frame[frames.HEADER_BYTES :]
    assert frames.payload_size(header) == len(payload)
    return payload


def test_sizes_are_bounded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(frames.FrameError, match="4294967295 bytes"):
        frames.payload_size(b"\xff\xff\xff\xff")
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(frames.FrameError, match="at most 100"):
        frames.encode_frame(frames.Abort(["x" * 101]))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"type": "Heartbeat", "step": "x"})],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode_from_engine(payload)
    with pytest.raises(frames.FrameError):
        frames.decode_to_engine(payload)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(frames.FrameError):
        frames.decode_to_engine(payload_of(frames.Heartbeat(1)))
