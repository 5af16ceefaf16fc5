"""Fits what Ascend adds to the speed model to the published figures of vLLM-Ascend.

Three constants, everything else being that of the GPUs: the fixed time of a step there (c0), what
drafting adds to it (draft), and the chance that a drafted token is accepted (accept). Most figures
are output rates of a closed loop, so the whole request is predicted: what --max-num-seqs and the KV
cache let run at once, the rest waiting. A first token after a cached prompt is not used: how much
of it was cached is not published.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m2serve.plan.configuration import Configuration
from m2serve.plan.memory import plan_memory
from m2serve.plan.speed_fit import Priors, SpeedConstants, fit, spread
from m2serve.plan.speed_model import (
    Array,
    Columns,
    Constants,
    SpeedPoint,
    tpot_ms,
    ttft_ms,
    under_load,
)
from m2serve.plan.speed_point import speed_point
from m2serve.records import Parallelism, Workload
from m2serve.spec.engines import find_engine
from m2serve.spec.hardware import DeviceGroup, Hardware, find_accelerator
from m2serve.spec.variants import find_variant

ACCELERATORS = ("ascend-910c", "ascend-910b3")
METRICS = ("ttft_ms", "tpot_ms", "output_tokens_per_s")
_INT8, _FP8 = "Eco-Tech/MiniMax-M2.5-w8a8-QuaRot", "MiniMaxAI/MiniMax-M2.5"
# (mean, deviation) of logarithms: an effect on c0, milliseconds, a share.
_PRIORS: Priors = {
    "c0": (math.log(2.5), 0.5),
    "draft": (math.log(10.0), 0.7),
    "accept": (math.log(0.6), 0.25),
}
_NOISE, _LARGE = 0.2, 0.2
_ITERATIONS = 40
_MAX_MODEL_LEN = 204_800
_BATCHED_TOKENS = 16_384


@dataclass(frozen=True)
class Figure:
    """`wanted` users, of whom `point.users` run at once; `row` groups the figures of one run."""

    row: int
    point: SpeedPoint
    wanted: float
    metric: str
    value: float


def read_figures(path: Path) -> list[Figure]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [figure for number, row in enumerate(rows) for figure in _figures(number, row)]


def with_ascend(constants: SpeedConstants, figures: Sequence[Figure]) -> SpeedConstants:
    """The constants with Ascend's own, and the error of each run predicted without itself."""
    fitted = _merged(constants.tpot, _fit(constants, figures))
    found = spread(left_out_errors(constants, figures))
    return replace(constants, tpot=fitted, ascend_spread=found, num_ascend=len(figures))


def left_out_errors(constants: SpeedConstants, figures: Sequence[Figure]) -> Array:
    """Predicted over published less one, by constants fitted without the figure's run."""
    parts = []
    for row in dict.fromkeys(figure.row for figure in figures):
        own = [figure for figure in figures if figure.row == row]
        rest = [figure for figure in figures if figure.row != row]
        parts.append(figure_errors(_merged(constants.tpot, _fit(constants, rest)), constants, own))
    return np.concatenate(parts)


def figure_errors(tpot: Constants, constants: SpeedConstants, figures: Sequence[Figure]) -> Array:
    """Predicted over published less one."""
    published = np.array([figure.value for figure in figures])
    return _predicted(tpot, constants.ttft, figures, _columns(figures)) / published - 1


def _fit(constants: SpeedConstants, figures: Sequence[Figure]) -> dict[str, float]:
    return fit(
        _PRIORS,
        _columns(figures),
        np.log([figure.value for figure in figures]),
        np.full(len(figures), 1 / _NOISE),
        _LARGE,
        lambda own, columns: _predicted(
            _merged(constants.tpot, own), constants.ttft, figures, columns
        ),
        _ITERATIONS,
    )


def _merged(tpot: Constants, own: Mapping[str, float]) -> dict[str, float]:
    effects = {f"c0@{name}": own["c0"] for name in ACCELERATORS}
    return {**tpot, **effects, "draft": own["draft"], "accept": own["accept"]}


def _columns(figures: Sequence[Figure]) -> Columns:
    return Columns([figure.point for figure in figures])


def _predicted(
    tpot: Constants, ttft: Constants, figures: Sequence[Figure], columns: Columns
) -> Array:
    steps = tpot_ms(tpot, columns)
    wanted = np.array([figure.wanted for figure in figures])
    first, rate = under_load(
        steps,
        ttft_ms(ttft, columns, steps),
        columns.numbers["users"],
        wanted,
        columns.numbers["output_len"],
    )
    metrics = [METRICS.index(figure.metric) for figure in figures]
    return np.choose(metrics, [first, steps, rate])


def _figures(number: int, row: Mapping[str, str]) -> list[Figure]:
    c, workload = _configuration(row), _workload(row)
    shared = workload.input_len * workload.prefix_hit
    own = workload.input_len + workload.output_len - shared
    held = (plan_memory(c).kv_cache_tokens - shared) / own
    running = min(workload.concurrency, int(row["max_num_seqs"]) * c.parallelism.data, held)
    point = speed_point(c, workload, max(1.0, running))
    point = replace(point, draft_tokens=int(row["draft_tokens"]))
    return [
        Figure(number, point, float(workload.concurrency), metric, float(row[metric]))
        for metric in METRICS
        if row[metric] and not (metric == "ttft_ms" and workload.prefix_hit)
    ]


def _workload(row: Mapping[str, str]) -> Workload:
    return Workload(
        concurrency=int(row["users"]),
        input_len=int(row["input_len"]),
        output_len=int(row["output_len"]),
        prefix_hit=float(row["prefix_hit"]),
    )


def _configuration(row: Mapping[str, str]) -> Configuration:
    cut = Parallelism(
        tensor=int(row["tensor"]),
        data=int(row["data"]),
        prefill_context=int(row["prefill_context"]),
        expert_parallel=True,
    )
    engine, device = find_engine("vllm-ascend"), find_accelerator(row["accelerator"])
    num_nodes = max(1, cut.world_size // device.devices_per_node)
    groups = (DeviceGroup(device, cut.world_size // num_nodes),)
    return Configuration(
        engine,
        engine.default_version,
        find_variant(_FP8 if row["is_bf16"] == "1" else _INT8),
        Hardware(groups, num_nodes),
        cut,
        _MAX_MODEL_LEN,
        gpu_memory_utilization=0.92 if row["is_bf16"] == "1" else 0.85,
        max_num_batched_tokens=_BATCHED_TOKENS,
    )
