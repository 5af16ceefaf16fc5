"""Published measurements as points of the speed model, and the rules by which rows are left out.

Two layouts are read: aiconfigurator's table of InferenceX runs on data-centre GPUs (Apache-2.0) and
the RTX Pro 6000 benchmark suite's rows (MIT). Each rule is a function; none names a row.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from m2serve.errors import UsageError
from m2serve.plan.speed_model import SpeedPoint, dense_bytes, model_flops
from m2serve.spec.cost import FP8_BLOCK, WeightBytes, kv_bytes_per_token, weight_bytes
from m2serve.spec.hardware import Accelerator, load_accelerators
from m2serve.spec.shape import ModelShape
from m2serve.spec.units import GIB
from m2serve.spec.variants import find_variant

Cells = Mapping[str, str]
REFERENCE = "MiniMaxAI/MiniMax-M2.5"
_SUITE_GPU = "rtx-pro-6000"
# Booked for what is neither weights nor KV cache: share of the memory, and bytes besides.
_MEMORY_SHARE, _OVERHEAD_BYTES = 0.92, 6 * GIB
# Prompts of the suite are identical; beyond this, how much of the cache is read once is unknown.
MAX_SHARED_CONTEXT = 250_000
MIN_BATCH_GROWTH = (
    1.3  # of the time a token takes, from 1 to 16 users, unless the host is the limit
)
MAX_CACHED = 0.6
MIN_COLD_PROMPT = 1000
OUTPUT_LEN = 1000  # of the suite, which does not state it per row


@dataclass(frozen=True)
class Measured:
    """`configuration`: rows that share it are left out together when predictions are judged.

    `ttft_ms` is None where a rule says that the row's figure is not a cold first token.
    """

    point: SpeedPoint
    configuration: str
    tpot_ms: float
    ttft_ms: float | None


def read_rows(path: Path) -> list[Measured]:
    """Either layout, by its head; raises UsageError for another one."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    head = rows[0].keys() if rows else ()
    if "silicon_tpot_ms" in head:
        return data_centre_rows(rows)
    if {"root", "watts", "tpot_ms"} <= set(head):
        return suite_rows(rows)
    raise UsageError(f"{path} has neither of the two known layouts of measured rows")


# Data-centre GPUs


def data_centre_rows(rows: Sequence[Cells]) -> list[Measured]:
    found: dict[tuple[object, ...], Measured] = {}
    for row in rows:
        if is_mislabelled(row):
            continue
        measured = _data_centre_row(row)
        key = (measured.configuration, measured.point, round(measured.tpot_ms, 2))
        found.setdefault(key, measured)
    return list(found.values())


def is_mislabelled(row: Cells) -> bool:
    """H100 rows with data-parallel attention repeat the tensor-parallel runs' figures."""
    return row["system"] == "h100_sxm" and int(row["attention_dp_size"]) > 1


def shares_whole_experts(row: Cells) -> bool:
    """Said, or the only way: FP8 blocks of 128 cannot be cut over so many ranks, so that "tp8 ep1"
    (H200) was expert parallel over the eight."""
    if int(row["moe_ep_size"]) > 1:
        return True
    shape = _reference_bytes()[0]
    rows_a_rank = shape.intermediate_size / int(row["tp_size"])
    return row["precision"] == "fp8" and rows_a_rank % FP8_BLOCK != 0


def is_queueing(point: SpeedPoint, kv_cache_tokens: float) -> bool:
    """More requests than the KV cache holds: the first token waits for another's end."""
    return point.users * (point.input_len + point.output_len) > kv_cache_tokens


def _data_centre_row(row: Cells) -> Measured:
    accelerator = _accelerators()[row["system"].removesuffix("_sxm")]
    # Ranks with data-parallel attention are recorded as tensor times data parallel.
    num, data = int(row["tp_size"]), int(row["attention_dp_size"])
    point = make_point(
        accelerator,
        is_four_bit=row["precision"] == "fp4",
        version=version_label(row["backend_version"]),
        tensor=num // data,
        data=data,
        expert_parallel=shares_whole_experts(row),
        users=float(row["conc"]),
        input_len=float(row["isl"]),
        output_len=float(row["osl"]),
    )
    capacity = kv_cache_tokens(point, accelerator.memory_bytes)
    is_late = is_queueing(point, capacity)
    held = capacity / (point.input_len + point.output_len / 2)
    fields = ("system", "precision", "backend_version", "tp_size", "attention_dp_size")
    name = " ".join(row[field] for field in (*fields, "moe_ep_size"))
    ttft = None if is_late else float(row["silicon_ttft_ms"])
    point = replace(point, users=min(point.users, held))
    return Measured(point, name, float(row["silicon_tpot_ms"]), ttft)


def version_label(version: str) -> str:
    """Nightly builds of any commit count as one version."""
    return "nightly" if version.startswith("nightly") else version


def kv_cache_tokens(point: SpeedPoint, memory_bytes: float) -> float:
    """Of all data-parallel ranks together, in BF16."""
    weights = point.expert_bytes / point.num_devices + point.dense_bytes / point.tensor
    left = memory_bytes * _MEMORY_SHARE - _OVERHEAD_BYTES - weights
    return max(left, 1e9) * point.data * point.tensor / point.kv_bytes_per_token


# RTX Pro 6000


def suite_rows(rows: Sequence[Cells]) -> list[Measured]:
    files: dict[str, list[Cells]] = defaultdict(list)
    for row in rows:
        files[row["file"]].append(row)
    measured: list[Measured] = []
    for name, members in files.items():
        if is_host_bound(members):
            continue
        cap = power_cap_w(name, members)
        measured += [
            _suite_row(row, name, cap) for row in members if not shares_too_much_context(row)
        ]
    return measured


def is_host_bound(rows: Sequence[Cells]) -> bool:
    """The time a token takes hardly grows from one user to sixteen: no CUDA graphs."""
    shortest = min(float(row["prompt"]) for row in rows)
    short = {int(r["conc"]): float(r["tpot_ms"]) for r in rows if float(r["prompt"]) == shortest}
    return 1 in short and 16 in short and short[16] < MIN_BATCH_GROWTH * short[1]


def shares_too_much_context(row: Cells) -> bool:
    return int(row["conc"]) * float(row["prompt"]) > MAX_SHARED_CONTEXT


def is_cached(row: Cells) -> bool:
    """Most prompts were in the prefix cache, or too short to tell prefill from the rest."""
    return float(row["hit"]) / 100 > MAX_CACHED or float(row["prompt"]) < MIN_COLD_PROMPT


def power_cap_w(file: str, rows: Sequence[Cells]) -> float:
    """Of one card: from the file's name, else what two cards drew at most less 30 W; 0 unknown."""
    named = re.search(r"_(\d+)W_", file)
    if named:
        return float(named.group(1))
    if num_cards(rows[0]["gpu"]) != 2 or not rows[0]["gpu"].startswith("2x"):
        return 0.0
    drawn = max(float(row["watts"] or 0) for row in rows) / 2
    return drawn - 30 if drawn > 150 else 0.0


def num_cards(text: str) -> int:
    """RTX Pro 6000 cards of a run, which the suite writes in several ways."""
    counted = re.match(r"(\d+)x ", text)
    if counted:
        return int(counted.group(1))
    return max(text.count("RTX PRO 6000"), 2)


def _suite_row(row: Cells, file: str, cap_w: float) -> Measured:
    accelerator = _accelerators()[_SUITE_GPU]
    point = make_point(
        accelerator,
        is_four_bit="NVFP4" in row["root"],
        version=row["version"],
        tensor=num_cards(row["gpu"]),
        users=float(row["conc"]),
        input_len=float(row["prompt"]),
        output_len=OUTPUT_LEN,
        prefix_hit=float(row["hit"]) / 100,
        power_limit_w=cap_w,
    )
    ttft = None if is_cached(row) else float(row["prefill_s"]) * 1000
    return Measured(point, file, float(row["tpot_ms"]), ttft)


# Points


def make_point(
    accelerator: Accelerator,
    *,
    is_four_bit: bool,
    version: str,
    tensor: int,
    users: float,
    input_len: float,
    output_len: float,
    data: int = 1,
    expert_parallel: bool = False,
    prefix_hit: float = 0.0,
    power_limit_w: float = 0.0,
) -> SpeedPoint:
    """The full-size model in FP8, or NVFP4 experts beside BF16 attention."""
    shape, fp8, nvfp4 = _reference_bytes()
    weights = nvfp4 if is_four_bit else fp8
    per_token, per_pair = model_flops(shape)
    return SpeedPoint(
        accelerator=accelerator.name,
        version=version,
        is_four_bit=is_four_bit,
        num_devices=tensor * data,
        tensor=tensor,
        data=data,
        expert_parallel=expert_parallel,
        users=users,
        input_len=input_len,
        output_len=output_len,
        prefix_hit=prefix_hit,
        bandwidth_gb_per_s=accelerator.bandwidth_gb_per_s,
        prefill_tflops=accelerator.fp8_tflops or accelerator.bf16_tflops,
        power_limit_w=power_limit_w,
        expert_bytes=weights.experts,
        dense_bytes=dense_bytes(shape, weights.attention, weights.lm_head),
        kv_bytes_per_token=kv_bytes_per_token(shape, "bfloat16"),
        experts_per_token_share=shape.num_experts_per_tok / shape.num_local_experts,
        prefill_flops_per_token=per_token,
        attention_flops_per_pair=per_pair,
    )


@cache
def _reference_bytes() -> tuple[ModelShape, WeightBytes, WeightBytes]:
    shape = find_variant(REFERENCE).shape
    fp8 = weight_bytes(shape, attention="fp8", experts="fp8")
    return shape, fp8, weight_bytes(shape, attention="bf16", experts="nvfp4")


@cache
def _accelerators() -> dict[str, Accelerator]:
    return {accelerator.name: accelerator for accelerator in load_accelerators()}
