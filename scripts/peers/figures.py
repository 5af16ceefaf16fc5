"""What each program printed, as named figures."""

from __future__ import annotations

import json
from statistics import median

Figures = dict[str, float]

RESULT = "RESULT "
DECODE = "decode_tokens_per_s"
PREFILL = "prefill_tokens_per_s"
BANDWIDTH = "read_bandwidth_gb_per_s"
SHARE = "bandwidth_share"
READ_RATE = "decode_gb_per_s"
LOAD = "load_s"
OUTPUT_RATE = "output_tokens_per_s"
TTFT = "mean_ttft_ms"
TPOT = "mean_tpot_ms"

UNITS = {
    DECODE: "tokens/s",
    PREFILL: "tokens/s",
    BANDWIDTH: "GB/s",
    SHARE: "share",
    READ_RATE: "GB/s",
    LOAD: "s",
    OUTPUT_RATE: "tokens/s",
    TTFT: "ms",
    TPOT: "ms",
}


def unit(metric: str) -> str:
    """Of a figure, also of one "at" a level of load."""
    return UNITS[metric.split(" at ")[0]]


def own_bench(printed: str) -> Figures:
    """Of `m2 bench engine --json`."""
    result = json.loads(printed)
    return {
        DECODE: result[DECODE]["median"],
        PREFILL: result[PREFILL]["median"],
        **{name: result[name] for name in (BANDWIDTH, SHARE, READ_RATE)},
    }


def llama_bench(printed: str) -> Figures:
    """Of `llama-bench -o json`: the median of its repeats."""
    figures = {}
    for test in json.loads(printed[printed.index("[\n") :]):
        name = DECODE if test["n_gen"] else PREFILL
        figures[name] = median(test["samples_ts"])
    return figures


def batched_bench(printed: str) -> Figures:
    """Of the one row of `llama-batched-bench`: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S."""
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 10 and cells[0].isdigit():
            return {PREFILL: float(cells[5]), DECODE: float(cells[7])}
    raise ValueError("llama-batched-bench printed no row")


def result_line(printed: str) -> Figures:
    """Of our own small programs, whose last word is a line of JSON behind RESULT."""
    for line in reversed(printed.splitlines()):
        if line.startswith(RESULT):
            found: Figures = json.loads(line.removeprefix(RESULT))
            return found
    raise ValueError("no result was printed")
