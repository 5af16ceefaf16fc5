"""The deployment that a log tells of: version and settings, as engines print them at start.

vLLM prints "non-default args: {...}" and "Initializing a V1 LLM engine (v0.33.0) with config: ...",
SGLang "server_args=ServerArgs(...)". What a line does not say stays unknown. Pure.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from typing import Any

from m2serve.spec.situation import Situation

# Engines print their settings first; a log that has not by then does not.
MAX_LINES = 5000

_VLLM_ARGS = "non-default args: "
_SGLANG_ARGS = "server_args=ServerArgs("
_VLLM_VERSION = re.compile(r"(?:LLM engine \(v|[█▀▄] {1,4}version )([0-9][0-9A-Za-z.+]{0,40})")
_QUANTIZATION = re.compile(r"\bquantization='?([a-z0-9_-]{1,40})")
_DEVICE = re.compile(r"\bdevice_config=([a-z]{1,10})")
_PAIR = re.compile(r"\b([a-z][a-z0-9_]{0,60})=('[^']{0,400}'|[A-Za-z0-9.+-]{1,40})")
_FORMATS = {"fp8": "fp8", "modelopt_fp4": "nvfp4", "modelopt": "nvfp4", "ascend": "w8a8"}
_VENDORS = {"cpu": "cpu", "npu": "ascend"}
_BASES = ("M2.7", "M2.5", "M2.1", "M2")
# SGLang prints every argument; these are settings an issue may ask for.
_SGLANG_FLAGS = (
    "attention_backend",
    "disable_cuda_graph",
    "enable_flashinfer_allreduce_fusion",
    "fp8_gemm_backend",
    "kv_cache_dtype",
    "moe_a2a_backend",
    "moe_runner_backend",
    "reasoning_parser",
    "sampling_defaults",
    "speculative_algorithm",
    "speculative_draft_model_path",
    "tool_call_parser",
)


class SituationFinder:
    """Looks at the lines of a log one by one; `situation` is what they have told."""

    def __init__(self) -> None:
        self.situation = Situation()
        self._lines_left = MAX_LINES

    def look(self, line: str) -> None:
        """One line, without line end."""
        if self._lines_left <= 0:
            return
        self._lines_left -= 1
        if "vllm_ascend" in line:
            self._learn(engine="vllm-ascend")
        if _VLLM_ARGS in line:
            self._learn(**_vllm_facts(line.partition(_VLLM_ARGS)[2]))
        elif _SGLANG_ARGS in line:
            self._learn(**_sglang_facts(line.partition(_SGLANG_ARGS)[2]))
        elif match := _VLLM_VERSION.search(line):
            self._learn(engine="vllm", engine_version=match[1], **_config_facts(line))

    def _learn(self, **facts: Any) -> None:
        """vLLM-Ascend is vLLM as well, so that name is kept."""
        if self.situation.engine == "vllm-ascend":
            facts.pop("engine", None)
        self.situation = replace(self.situation, **facts)


def model_base(name: str) -> str:
    """M2, M2.1, M2.5 or M2.7 in a model's name, or ""."""
    lowered = name.lower()
    return next((base for base in _BASES if f"minimax-{base.lower()}" in lowered), "")


def _vllm_facts(text: str) -> dict[str, Any]:
    """From the dictionary of arguments that are not the defaults; nothing when it was cut off."""
    try:
        arguments = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"engine": "vllm"}
    if not isinstance(arguments, dict):
        return {"engine": "vllm"}
    model = str(arguments.get("model") or arguments.get("model_tag") or "")
    return {
        "engine": "vllm",
        "model": model,
        "model_base": model_base(model),
        "tensor_parallel": _whole(arguments.get("tensor_parallel_size"), 1),
        "pipeline_parallel": _whole(arguments.get("pipeline_parallel_size"), 1),
        "data_parallel": _whole(arguments.get("data_parallel_size"), 1),
        "expert_parallel": bool(arguments.get("enable_expert_parallel", False)),
        "kv_cache_dtype": str(arguments.get("kv_cache_dtype", "auto")),
        "max_model_len": _whole(arguments.get("max_model_len"), 0),
        "gpu_memory_utilization": _number(arguments.get("gpu_memory_utilization")),
        "flags": frozenset(_flag(str(name), value) for name, value in arguments.items()),
    }


def _config_facts(line: str) -> dict[str, Any]:
    """From the engine's configuration: the weights' format and the kind of device."""
    format, device = _QUANTIZATION.search(line), _DEVICE.search(line)
    facts = {}
    if format and format[1] in _FORMATS:
        facts["quantization"] = _FORMATS[format[1]]
    if device and device[1] in _VENDORS:
        facts["vendor"] = _VENDORS[device[1]]
    return facts


def _sglang_facts(text: str) -> dict[str, Any]:
    arguments = {name: value.strip("'") for name, value in _PAIR.findall(text)}
    model = arguments.get("model_path", "")
    facts: dict[str, Any] = {
        "engine": "sglang",
        "model": model,
        "model_base": model_base(model),
        "tensor_parallel": _whole(arguments.get("tp_size"), 0),
        "kv_cache_dtype": arguments.get("kv_cache_dtype", ""),
        "max_model_len": _whole(arguments.get("context_length"), 0),
    }
    if "ep_size" in arguments:
        facts["expert_parallel"] = _whole(arguments["ep_size"], 1) > 1
    # A line that was cut off says nothing of the flags behind the cut.
    if text.rstrip().endswith(")"):
        given = {name: arguments.get(name, "None") for name in _SGLANG_FLAGS}
        facts["flags"] = frozenset(
            _flag(name, True if value == "True" else value)
            for name, value in given.items()
            if value not in ("None", "False", "auto")
        )
    return facts


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    if isinstance(value, dict | list):
        return f"{flag}={json.dumps(value, default=str)}"
    return f"{flag}={value}"


def _whole(value: Any, otherwise: int) -> int:
    text = str(value)
    return int(text) if text.isdecimal() and len(text) < 10 else otherwise


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
