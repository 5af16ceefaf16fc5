"""A run as `perf/` keeps it, for tests that change a field or two."""

from m2serve.records import RunRecord

RECORD = RunRecord(
    commit="0123456789abcdef",
    command="m2 bench engine",
    machine="4xb200",
    model="MiniMaxAI/MiniMax-M2.5",
    engine="vllm",
    engine_version="0.20.2",
    input_len=2048,
    output_len=512,
    concurrency=8,
    ttft_ms=150.0,
    tpot_ms=12.0,
    output_tokens_per_s=650.0,
    extra=(("date", "2026-11-20T10:00:00+00:00"), ("parallelism", "TP4")),
)
