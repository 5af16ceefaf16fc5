"""Time per output token and time to the first one: physics with fitted constants.

    tpot = c0 + communication + weights / (bandwidth * e_w) + KV / (bandwidth * e_kv)
           + scheduling * users + prefill of the others' prompts
    ttft = t0 + a step + prefill of the prompt + its share of a burst of prompts

A layer reads E(1 - (1 - k/E)^(kappa * users)) of its E experts. A step that drafts takes longer,
computes the drafted tokens of every user, and yields those that are accepted besides its own. Under
a power cap a step takes at least its energy over what the cap leaves above the idle power; both
limits meet in a sixth-power mean. Constants and their effects by accelerator, engine version and
four-bit weights come from speed_constants.toml, which scripts/fit_speed_model.py writes; an effect
nobody has measured is 0. Drafts were fitted on Ascend alone.
All quantities are arrays over points, so that the same code predicts one plan and fits a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m2serve.spec.cost import attention_parameters, count_parameters, expert_parameters
from m2serve.spec.shape import ModelShape

Constants = Mapping[str, float]
Array = np.ndarray
_MEAN_POWER = 6
_WARM = 0.3  # a measured hit rate above this: some requests cold, the others cached whole
_MIN_HEADROOM_W = 20.0
_MAX_ACCEPTED = 0.95


@dataclass(frozen=True)
class SpeedPoint:
    """One deployment under one load; bytes are of the whole model, rates of one device.

    `users` run at once. `dense_bytes`: attention, router and head, read by every step.
    `power_limit_w` 0: no cap. `num_devices` work on one step together: tensor times data ranks.
    `draft_tokens` are proposed a step, 0 without drafting.
    """

    accelerator: str
    version: str
    is_four_bit: bool
    num_devices: int
    tensor: int
    data: int
    expert_parallel: bool
    users: float
    input_len: float
    output_len: float
    prefix_hit: float
    bandwidth_gb_per_s: float
    prefill_tflops: float
    power_limit_w: float
    expert_bytes: float
    dense_bytes: float
    kv_bytes_per_token: float
    experts_per_token_share: float
    prefill_flops_per_token: float
    attention_flops_per_pair: float
    draft_tokens: int = 0


def model_flops(shape: ModelShape) -> tuple[float, float]:
    """(per prompt token in the layers' matrices, per pair of tokens in attention)."""
    experts = shape.num_experts_per_tok * expert_parameters(shape)
    matrices = shape.num_hidden_layers * (attention_parameters(shape) + experts)
    return 2.0 * matrices, 4.0 * shape.num_hidden_layers * shape.q_size


def dense_bytes(shape: ModelShape, attention: float, lm_head: float) -> float:
    """What every step reads apart from experts; the router is float32."""
    return attention + lm_head + 4.0 * count_parameters(shape).router


class Columns:
    """Points as arrays by field name."""

    def __init__(self, points: Sequence[SpeedPoint]) -> None:
        self.points = tuple(points)
        self._accelerator = np.array([p.accelerator for p in points])
        self._version = np.array([p.version for p in points])
        self._effects: dict[str, Array] = {}
        self.numbers = {
            name: np.array([float(getattr(p, name)) for p in points])
            for name, kind in SpeedPoint.__annotations__.items()
            if kind != "str"
        }

    def effect(self, constants: Constants, name: str) -> Array:
        """The constant plus its effects: "@accelerator", "#version", "_fp4"."""
        total = np.full(len(self.points), constants[name])
        total = total + constants.get(f"{name}_fp4", 0.0) * self.numbers["is_four_bit"]
        for mark, labels in (("@", self._accelerator), ("#", self._version)):
            for label in dict.fromkeys(labels.tolist()):
                value = constants.get(f"{name}{mark}{label}", 0.0)
                if value:
                    total = total + value * (labels == label)
        return total


def tpot_ms(constants: Constants, columns: Columns) -> Array:
    """Mean milliseconds between output tokens of a request, [points]."""
    x = columns.numbers
    log = lambda name: columns.effect(constants, name)  # noqa: E731
    num, users = x["num_devices"], x["users"]
    per_ms = x["bandwidth_gb_per_s"] * 1e6
    constant = np.exp(log("c0") + constants["c0_dp"] * (x["data"] > 1))
    constant = constant + math.exp(constants["comm"]) * np.log2(num)
    constant = constant + math.exp(constants.get("draft", 0.0)) * (x["draft_tokens"] > 0)
    alpha = columns.effect(constants, "alpha")
    efficiency = np.exp(
        log("eff") - alpha * np.log(num) + constants["eff_ep"] * x["expert_parallel"]
    )
    weights = weight_bytes_of_step(constants, columns)
    context = x["input_len"] + x["output_len"] / 2
    kv = users / x["data"] * context * x["kv_bytes_per_token"] / np.minimum(x["tensor"], 8)
    total = constant + weights / (per_ms * efficiency) + kv / (per_ms * np.exp(log("effkv")))
    total = (total + math.exp(constants["p"]) * users) / tokens_per_step(constants, columns)
    total = total + users * _prefill_ms(constants, columns, x["prefix_hit"]) / x["output_len"]
    energy_mj = (
        math.exp(constants["ew"]) * weights / 1e7
        + math.exp(constants["ekv"]) * kv / 1e9 * 60
        + math.exp(constants["et"]) * users * 100 / num
        + math.exp(constants["eplus"]) * 1200
    )
    return _with_power_cap(total, energy_mj, x["power_limit_w"], math.exp(constants["P0"]))


def tokens_per_step(constants: Constants, columns: Columns) -> Array:
    """1 + a + ... + a^k: a drafted token is accepted with chance a if the one before it was."""
    chance = min(math.exp(constants.get("accept", -math.inf)), _MAX_ACCEPTED)
    return (1 - chance ** (columns.numbers["draft_tokens"] + 1)) / (1 - chance)


def weight_bytes_of_step(constants: Constants, columns: Columns) -> Array:
    """Bytes of weights one device reads in a decode step."""
    x = columns.numbers
    tokens = x["users"] * (1 + x["draft_tokens"])
    draws = np.where(tokens > 1, np.maximum(1, tokens * math.exp(constants["kappa"])), 1)
    touched = 1 - (1 - x["experts_per_token_share"]) ** draws
    return x["expert_bytes"] * touched / x["num_devices"] + x["dense_bytes"] / x["tensor"]


def _prefill_ms(constants: Constants, columns: Columns, hit: Array) -> Array:
    """Of the part of one prompt that is not cached, while others decode."""
    x = columns.numbers
    cold = np.where(hit >= _WARM, 0.0, x["input_len"] * (1 - hit))
    flops = x["prefill_flops_per_token"] * cold
    flops = flops + x["attention_flops_per_pair"] * cold * x["input_len"] / 2
    return flops / _prefill_rate(constants, columns)


def _prefill_rate(constants: Constants, columns: Columns) -> Array:
    """Operations per millisecond of all devices."""
    x = columns.numbers
    share = np.exp(columns.effect(constants, "rho"))
    return share * x["prefill_tflops"] * 1e9 * x["num_devices"] ** constants["gamma"]


def ttft_ms(constants: Constants, columns: Columns, tpot: Array) -> Array:
    """Mean milliseconds to the first token of a request that finds a free slot, [points].

    `tpot`: the prediction for the same points; an arriving prompt waits for the step that runs.
    """
    x = columns.numbers
    hit = x["prefix_hit"]
    is_warm = hit > _WARM
    cold = np.where(is_warm, x["input_len"], x["input_len"] * (1 - hit))
    linear = x["prefill_flops_per_token"] * cold
    square = x["attention_flops_per_pair"] * cold * x["input_len"] / 2
    flops = linear + math.exp(constants["attn"]) * square
    prefill = flops / _prefill_rate(constants, columns)
    energy_mj = math.exp(constants["et"]) * linear / 1e12 / x["num_devices"] * 700
    cap, idle = x["power_limit_w"], math.exp(constants["P0"])
    prefill = _with_power_cap(prefill, energy_mj, cap, idle) * np.where(is_warm, 1 - hit, 1.0)
    others = np.maximum(x["users"] - 1, 0) ** math.exp(constants["bexp"])
    burst = math.exp(constants["burst"]) * prefill * others
    base = np.exp(columns.effect(constants, "t0"))
    return base + math.exp(constants["step"]) * tpot + prefill + burst


def under_load(
    tpot: Array, ttft: Array, users: Array, wanted: Array, output_len: Array
) -> tuple[Array, Array]:
    """(TTFT in ms, output tokens a second) where `users` of the `wanted` run at once and the others
    wait for a whole answer; all [points].
    """
    answer = ttft + (output_len - 1) * tpot
    waiting = np.maximum(0.0, wanted / users - 1) * answer
    return ttft + waiting, users * output_len / answer * 1000


def _with_power_cap(time_ms: Array, energy_mj: Array, cap_w: Array, idle_w: float) -> Array:
    """Energy over the power that is left; mJ / W is ms."""
    limit = energy_mj / np.maximum(_MIN_HEADROOM_W, cap_w - idle_w)
    mean = (time_ms**_MEAN_POWER + limit**_MEAN_POWER) ** (1 / _MEAN_POWER)
    return np.where(cap_w > 0, mean, time_ms)
