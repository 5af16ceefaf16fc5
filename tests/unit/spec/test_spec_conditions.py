"""The little language of conditions: true, false, and unknown when a fact is."""

import pytest

from m2serve.spec.conditions import any_holds, read_condition
from m2serve.spec.situation import Situation

PLAIN = Situation(
    engine="vllm",
    engine_version="0.16.1rc1",
    tensor_parallel=8,
    max_model_len=204800,
    checkpoint_max_model_len=196608,
    gpu_memory_utilization=0.95,
    expert_parallel=False,
    flags=frozenset({"--kv-cache-dtype=fp8", "--enable_chunked_prefill"}),
    env=frozenset(),
)


@pytest.mark.parametrize(
    ("table", "result"),
    [
        ({"engine": "vllm"}, True),
        ({"engine": ["sglang", "vllm"]}, True),
        ({"engine": "!vllm"}, False),
        ({"engine": "v*m"}, True),
        ({"engine": "vllm*x"}, False),
        ({"model": "nvidia/*"}, None),
        ({"engine_version": ">=0.15,<0.17"}, True),
        ({"engine_version": "<0.16.1"}, True),
        ({"engine_version": ">=0.16.1"}, False),
        ({"tensor_parallel": 8}, True),
        ({"tensor_parallel": [2, 4]}, False),
        ({"tensor_parallel": ">=8,<16"}, True),
        ({"tensor_parallel": "divides 1536"}, True),
        ({"tensor_parallel": "not divides 12"}, True),
        ({"num_nodes": ">=2"}, None),
        ({"max_model_len": ">checkpoint_max_model_len"}, True),
        ({"max_model_len": ">device_memory_bytes"}, None),
        ({"gpu_memory_utilization": ">=0.9"}, True),
        ({"expert_parallel": False}, True),
        ({"expert_parallel": True}, False),
        ({"flags": ["--kv-cache-dtype"]}, True),
        ({"flags": ["--kv-cache-dtype=fp8"]}, True),
        ({"flags": ["--kv-cache-dtype=auto"]}, False),
        ({"flags": ["--enable-chunked-prefill"]}, True),
        ({"flags": ["!--kv-cache-dtype"]}, False),
        ({"flags": ["!--enforce-eager", "--kv-cache-dtype=*8"]}, True),
        ({"env": ["!NCCL_P2P_LEVEL"]}, True),
        ({"env": ["NCCL_P2P_LEVEL"]}, False),
        ({"engine": "vllm", "num_nodes": 2}, None),
        ({"engine": "sglang", "num_nodes": 2}, False),
    ],
)
def test_a_condition(table: dict, result: bool | None) -> None:
    assert read_condition(table, "here").holds(PLAIN) is result


@pytest.mark.parametrize("fact", ["flags", "env", "expert_parallel"])
def test_what_is_absent_is_not_what_is_unknown(fact: str) -> None:
    table = {fact: True} if fact == "expert_parallel" else {fact: ["!--x"]}
    assert read_condition(table, "here").holds(Situation(engine="vllm")) is None


def test_a_version_without_an_order_is_unknown() -> None:
    condition = read_condition({"engine_version": "<0.15"}, "here")
    assert condition.holds(Situation(engine_version="cf3eacfe58fa")) is None
    assert condition.holds(Situation(engine_version="nightly")) is False


def test_any_of_several() -> None:
    one, two, lost = (
        read_condition(table, "here")
        for table in ({"engine": "vllm"}, {"engine": "sglang"}, {"num_nodes": 2})
    )
    assert any_holds([two, one], PLAIN) is True
    assert any_holds([two, lost], PLAIN) is None
    assert any_holds([two], PLAIN) is False
    assert any_holds([], PLAIN) is None
