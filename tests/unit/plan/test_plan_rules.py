"""What cannot run is dropped with the right sentence, and what is known to run is not."""

import pytest

from m2serve.plan.configuration import Configuration
from m2serve.plan.rules import first_objection
from m2serve.records import Parallelism
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import parse_hardware
from m2serve.spec.variants import find_variant

FP8 = "MiniMaxAI/MiniMax-M2.5"
NVFP4 = "nvidia/MiniMax-M2.5-NVFP4"
INT4_G128 = "QuantTrio/MiniMax-M2.5-AWQ"
INT4_G32 = "mratsim/MiniMax-M2.5-BF16-INT4-AWQ"
INT8 = "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot"


def configuration(
    hardware: str,
    name: str = FP8,
    engine: str = "vllm",
    *,
    version: str = "",
    kv: str = "auto",
    context: int = 32_768,
    draft: str = "",
    **cut: object,
) -> Configuration:
    row = find_engine(engine)
    return Configuration(
        row,
        version or row.default_version,
        find_variant(name),
        parse_hardware(hardware),
        Parallelism(**cut),  # type: ignore[arg-type]
        context,
        kv_cache_dtype=kv,
        draft=draft,
    )


EP = {"expert_parallel": True}


@pytest.mark.parametrize(
    ("c", "sentence"),
    [
        (configuration("8xh200", tensor=8), "1536 / 8 = 192 is not a multiple of the FP8 block"),
        (configuration("8xb200", INT4_G128, tensor=8), "192 is not a multiple of the INT4 group"),
        (configuration("3xh200", tensor=3), "TP3 neither divides nor multiplies the 8 key-value"),
        (configuration("5xh200", tensor=5), "TP5 does not divide the 48 query heads"),
        (configuration("1xb200", INT8, "vllm"), "msModelSlim"),
        (configuration("8x910b3", NVFP4, "vllm-ascend", tensor=8, **EP), "does not load nvfp4"),
        (configuration("8x910b3", FP8, "vllm", tensor=8, **EP), "does not run on ascend-910b3"),
        (configuration("1xmi300x", NVFP4, "sglang"), "no kernel for NVFP4"),
        (configuration("2xh100", FP8, "own", tensor=2), "one device, not 2"),
        (configuration("4xh200", version="0.11.0", tensor=4), "0.11.0 is older than"),
        (configuration("4xa100", FP8, "sglang", version="0.5.9", tensor=4), "fp8e4nv"),
        (configuration("1xm3-ultra", "mlx-community/MiniMax-M2.5-4bit"), "does not run on m3"),
        (configuration("1xb200", "MiniMax-M2.5-GGUF:Q4_K_M"), "does not load gguf"),
        (
            configuration("4xh200", tensor=4, context=200_000),
            "is more than the 196,608",
        ),
        (configuration("1xrtx-pro-6000+2xrtx-4090", NVFP4, tensor=3), "cards are unequal"),
        (configuration("16xh200", tensor=16, **EP), "would span nodes"),
        (configuration("16x910b3", FP8, "vllm-ascend", tensor=16, **EP), "would span nodes"),
        (configuration("8x910b3", INT8, "vllm-ascend", pipeline=8), "2 to 10 tokens/s"),
        (configuration("8xb200", NVFP4, data=8), "with EP they stay whole"),
        (configuration("8x910b3", INT8, "vllm-ascend", tensor=8), "expert parallelism alone"),
        (configuration("4xh200", tensor=2), "2 ranks do not fit 4 devices"),
        (configuration("4xa100", kv="fp8", tensor=4), "no FP8 arithmetic"),
        (configuration("8x910b3", INT8, "vllm-ascend", kv="int8", tensor=8, **EP), "c8 checkpoint"),
        (configuration("8xh200", tensor=8, prefill_context=1, decode_context=2, **EP), "context"),
        (
            configuration("16x910b3", FP8, "vllm-ascend", tensor=8, prefill_context=2, **EP),
            "stay inside a node",
        ),
        (
            configuration("16x910c", INT8, "vllm-ascend", tensor=16, decode_context=4, **EP),
            "DCP4 needs that many copies of each KV head, TP16 makes 2",
        ),
        (
            configuration("8x910b3", FP8, "vllm-ascend", version="0.23.0rc1", tensor=8, **EP),
            "crashes on the FP8 release",
        ),
        (
            configuration("16xh200", FP8, "sglang", version="0.5.9", tensor=16, **EP),
            "copies the 8 KV heads wrongly",
        ),
        (
            configuration("8x910b3", INT8, "vllm-ascend", tensor=8, draft="other/draft", **EP),
            "was not made for",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_dropped_with_the_reason(c: Configuration, sentence: str) -> None:
    objection = first_objection(c)
    assert objection is not None
    assert sentence in objection


@pytest.mark.parametrize(
    "c",
    [
        configuration("4xrtx-pro-6000", tensor=4),
        configuration("8xrtx-pro-6000-max-q", FP8, "sglang", tensor=8, **EP),
        configuration("8xrtx-pro-6000-max-q", tensor=8, **EP),
        configuration("2xrtx-pro-6000", NVFP4, "sglang", tensor=2),
        configuration("2xrtx-pro-6000", INT4_G32, tensor=2),
        configuration("8xh200", INT4_G32, tensor=8),
        configuration("8xb200", NVFP4, tensor=8),
        configuration("8xh200", data=8, **EP),
        configuration("1xh200", NVFP4),  # Marlin, weight-only
        configuration("4xa100", tensor=4),  # Marlin, weight-only
        configuration("1xdgx-spark", "lukealonso/MiniMax-M2.5-REAP-139B-A10B-NVFP4"),
        configuration("2xdgx-spark", NVFP4, tensor=2),  # one card a node
        configuration("2xmi300x", tensor=2),
        configuration("1xb200", NVFP4, "own"),
        configuration("1xepyc-9005", FP8, "own"),
        configuration("1xrtx-pro-6000+2xrtx-5090", NVFP4, pipeline=3, pipeline_layers=(40, 11, 11)),
        configuration("16x910c", INT8, "vllm-ascend", tensor=4, data=4, **EP),
        configuration("16x910c", INT8, "vllm-ascend", tensor=8, prefill_context=2, **EP),
        configuration("2xatlas-800i-a2", FP8, "vllm-ascend", tensor=8, data=2, **EP),
        configuration("4xb200", FP8, kv="fp8", tensor=4),
    ],
    ids=str,
)
def test_known_to_run(c: Configuration) -> None:
    assert first_objection(c) is None


def test_fp8_becomes_bf16_on_ascend() -> None:
    """No block rule then: BF16 has none."""
    c = configuration("16x910c", FP8, "vllm-ascend", tensor=16, **EP)
    assert c.held.quantization == "bf16"
    assert c.held.checkpoint_bytes == pytest.approx(457.4e9, rel=0.01)
    assert first_objection(c) is None
