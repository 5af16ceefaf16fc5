from m2serve.engine.request import EngineStats
from m2serve.server.throughput_log import throughput_line


def test_rates_are_of_the_interval() -> None:
    last = EngineStats(prompt_tokens=100, generation_tokens=10, num_preemptions=2)
    now = EngineStats(
        prompt_tokens=300,
        generation_tokens=60,
        num_running_reqs=3,
        num_waiting_reqs=1,
        num_preemptions=3,
        kv_cache_usage=0.5,
        prefix_cache_queries=200,
        prefix_cache_hits=50,
    )
    assert throughput_line(last, now, 10.0) == (
        "Avg prompt throughput: 20.0 tokens/s, Avg generation throughput: 5.0 tokens/s, "
        "Running: 3 reqs, Waiting: 1 reqs, Preemptions: 1, KV cache usage: 50.0%, "
        "Prefix cache hit rate: 25.0%"
    )


def test_idle_is_silent_but_a_stuck_engine_is_not() -> None:
    stats = EngineStats(prompt_tokens=100, generation_tokens=10)
    assert throughput_line(stats, stats, 10.0) == ""
    stuck = EngineStats(prompt_tokens=100, generation_tokens=10, num_waiting_reqs=1)
    assert "0.0 tokens/s" in throughput_line(stuck, stuck, 10.0)


def test_a_restarted_engine_does_not_count_backwards() -> None:
    last = EngineStats(prompt_tokens=1000, generation_tokens=500)
    now = EngineStats(prompt_tokens=10, generation_tokens=5)
    assert throughput_line(last, now, 1.0).startswith("Avg prompt throughput: 10.0 tokens/s")


def test_the_share_of_native_code_is_of_the_interval() -> None:
    last = EngineStats(generation_tokens=10, busy_s=100.0, native_s=50.0)
    now = EngineStats(generation_tokens=20, busy_s=104.0, native_s=53.8)
    assert throughput_line(last, now, 10.0).endswith("hit rate: 0.0%, Native code: 95.0%")
    assert "Native" not in throughput_line(last, last, 10.0)
