"""Independent servers: when the search takes them, what is of one and what of all."""

import pytest

from m2serve.plan.candidates import replica_shares
from m2serve.plan.plan import choose, make_plan
from m2serve.plan.ranking import workload_tokens
from m2serve.records import Workload
from m2serve.spec.hardware import parse_hardware

FP8 = "MiniMaxAI/MiniMax-M2.5"
CROWD = Workload(concurrency=512, objective="throughput")


def test_shares_of_a_machine() -> None:
    shares = replica_shares(parse_hardware("8xh200"))
    assert [(len(share.devices), count) for share, count in shares] == [(1, 8), (2, 4), (4, 2)]
    assert replica_shares(parse_hardware("1xrtx-pro-6000+2xrtx-4090")) == ()
    assert replica_shares(parse_hardware("16xh200")) == ()
    assert replica_shares(parse_hardware("1xepyc-9005")) == ()


def test_many_users_are_served_by_two_servers() -> None:
    plan, configuration = choose(FP8, "8xh200", CROWD, "vllm")
    assert (plan.num_replicas, plan.parallelism.tensor) == (2, 4)
    assert str(configuration).endswith("2 x TP4")
    assert plan.hardware == "8xh200"
    assert len(plan.ranks) == 4
    assert {s.name: s.value for s in plan.settings}["--tensor-parallel-size"] == "4"
    assert {s.name: s.value for s in plan.settings}["--max-num-seqs"] == "256"
    alone = make_plan(
        FP8, "4xh200", Workload(concurrency=256, objective="throughput"), engine="vllm"
    )
    assert plan.kv_cache_tokens == 2 * alone.kv_cache_tokens
    assert plan.ranks == alone.ranks
    one, two = alone.speed, plan.speed
    assert two.tpot_ms.value == pytest.approx(one.tpot_ms.value)
    assert two.output_tokens_per_s.value == pytest.approx(2 * one.output_tokens_per_s.value)
    single = next(entry for entry in plan.runners_up if "TP8" in entry.configuration)
    assert " against " in single.reason


def test_replicas_can_be_ruled_out() -> None:
    plan = make_plan(FP8, "8xh200", CROWD, engine="vllm", allow_replicas=False)
    assert plan.num_replicas == 1
    assert len(plan.ranks) == 8


def test_for_one_user_there_is_one_server() -> None:
    plan = make_plan(FP8, "8xb200", Workload(concurrency=1, objective="throughput"))
    assert plan.num_replicas == 1
    assert not any(" x TP" in entry.configuration for entry in plan.runners_up)


def test_latency_looks_at_replicas_only_where_the_whole_cut_is_invalid() -> None:
    """FP8 blocks of 128 do not divide over eight tensor ranks, NVFP4's groups of 16 do."""
    fp8 = make_plan(FP8, "8xb200", engine="vllm")
    assert any(" x TP" in entry.configuration for entry in fp8.runners_up)
    nvfp4 = make_plan("lukealonso/MiniMax-M2.5-NVFP4", "8xb200", engine="vllm")
    assert not any(" x TP" in entry.configuration for entry in nvfp4.runners_up)


def test_a_shared_prefix_is_held_by_every_replica() -> None:
    workload = Workload(concurrency=10, input_len=1000, output_len=100, prefix_hit=0.5)
    assert workload_tokens(workload) == 500 + 10 * 600
    assert workload_tokens(workload, 2) == 2 * (500 + 5 * 600)
    assert workload_tokens(workload, 4) == 4 * (500 + 3 * 600)
