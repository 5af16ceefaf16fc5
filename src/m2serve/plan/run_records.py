"""Measured runs as files: RunRecord objects, and what `m2 bench engine --json` prints.

A file holds one JSON object or a list of them, a folder any number of such files. Text in a file is
untrusted: sizes and counts are bounded, types are checked.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from m2serve.errors import UsageError
from m2serve.records import Parallelism, RunRecord
from m2serve.spec.hardware import DeviceGroup, Hardware, accelerator_of_driver, parse_hardware

MAX_FILE_BYTES = 16 << 20
MAX_FILES = 1000
MAX_RUNS = 10_000
_MAX_TEXT = 10_000
_MAX_NUMBER = 1e15
_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(RunRecord)}
_KINDS: Mapping[str, Callable[[float], float]] = {"int": int, "float": float}
_BENCH_ENGINE = {"prefill_tokens_per_s", "decode_tokens_per_s", "decode_step_s", "batch", "machine"}
_CUT = re.compile(
    r"(?:([0-9]{1,4}) x )?((?:(?:TP|PP|DP|DCP|PCP)[0-9]{1,4}(?: |$))+)(EP)? ?"
    r"(?:\(([0-9][0-9,]{0,500})\))?"
)
_SIZES = {"TP": "tensor", "PP": "pipeline", "DP": "data"}
_SIZES |= {"DCP": "decode_context", "PCP": "prefill_context"}
_FLAGS = {
    **dict.fromkeys(("--tensor-parallel-size", "-tp", "--tp-size", "--tp"), "tensor"),
    **dict.fromkeys(("--pipeline-parallel-size", "-pp", "--pp-size"), "pipeline"),
    **dict.fromkeys(("--data-parallel-size", "-dp", "--dp-size"), "data"),
}


@dataclass(frozen=True)
class Run:
    """A record and what plan/measured.py compares; None: the record does not tell."""

    record: RunRecord
    file: str
    date: str
    hardware: Hardware | None
    cut: Parallelism | None
    num_replicas: int
    kv_cache_dtype: str
    prefix_hit: float


def read_runs(path: Path) -> tuple[Run, ...]:
    """Every run of a file, or of the JSON files in a folder that hold runs; raises UsageError."""
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if len(files) > MAX_FILES:
            raise UsageError(f"{path} holds {len(files)} JSON files; {MAX_FILES} are read at most")
    else:
        files = [path]
    runs = [run for file in files for run in _runs_of(file, is_only=not path.is_dir())]
    if not runs:
        raise UsageError(f"{path} holds no runs: neither RunRecords nor m2 bench engine --json")
    if len(runs) > MAX_RUNS:
        raise UsageError(f"{path} holds {len(runs)} runs; {MAX_RUNS} are read at most")
    return tuple(runs)


def parse_cut(text: str) -> tuple[int, Parallelism]:
    """("2 x TP4 DP2 EP": two replicas, their cut); raises UsageError."""
    match = _CUT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"parallelism {text[:80]!r} is not like TP4, 'TP8 DP2 EP' or '2 x TP4'")
    sizes = {_SIZES[word.rstrip("0123456789")]: word for word in match[2].split()}
    numbers = {name: int(re.sub(r"\D", "", word)) for name, word in sizes.items()}
    if min(*numbers.values(), int(match[1] or 1)) < 1:
        raise UsageError(f"parallelism {text!r} has a size of 0")
    layers = tuple(int(count[:4]) for count in (match[4] or "").split(",") if count)
    cut = _parallelism(numbers, bool(match[3]))
    return int(match[1] or 1), dataclasses.replace(cut, pipeline_layers=layers)


def _runs_of(file: Path, *, is_only: bool) -> list[Run]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB")
        held = json.loads(file.read_text("utf-8"))
        day = datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from error
    entries = held if isinstance(held, list) else [held]
    runs = []
    for entry in entries:
        if isinstance(entry, dict) and entry.keys() >= _BENCH_ENGINE:
            if entry.get("model"):  # random weights are no checkpoint's
                runs.append(_run(_of_bench_engine(entry, file), file, day))
        elif isinstance(entry, dict) and {"tpot_ms", "engine", "concurrency"} <= entry.keys():
            runs.append(_run(_record(entry, file), file, day))
        elif is_only:
            raise UsageError(f"{file} holds neither a RunRecord nor m2 bench engine --json")
    return runs


def _record(entry: Mapping[str, Any], file: Path) -> RunRecord:
    values: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        value = entry.get(name, [] if name == "extra" else None)
        if name == "extra":
            values[name] = _pairs(value, file)
        elif kind in _KINDS:
            values[name] = _KINDS[kind](_number(value, name, file))
        elif isinstance(value, str) and len(value) <= _MAX_TEXT:
            values[name] = value
        else:
            raise UsageError(f"{file}: {name} is {str(value)[:80]!r}; a text is needed")
    return RunRecord(**values)


def _pairs(value: object, file: Path) -> tuple[tuple[str, str], ...]:
    entries = [list(pair) for pair in value.items()] if isinstance(value, dict) else value
    if not isinstance(entries, list) or len(entries) > 1000:
        raise UsageError(f"{file}: extra is not a list of (name, value)")
    for pair in entries:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(x, str) and len(x) <= _MAX_TEXT for x in pair):
            raise UsageError(f"{file}: extra holds {str(pair)[:80]!r}; two texts are needed")
    return tuple((name, text) for name, text in entries)


def _number(value: object, name: str, file: Path) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < _MAX_NUMBER:  # type: ignore[operator]
        raise UsageError(f"{file}: {name} is {str(value)[:80]!r}; a number from 0 is needed")
    return float(value)  # type: ignore[arg-type]


def _of_bench_engine(entry: Mapping[str, Any], file: Path) -> RunRecord:
    """All sequences start together and get their first token when the last prompt is computed."""
    rates = {}
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        spread = entry[name]
        rates[name] = _number(
            spread.get("median") if isinstance(spread, dict) else None, name, file
        )
        if rates[name] == 0:
            raise UsageError(f"{file}: {name} is 0")
    numbers = {
        name: int(_number(entry.get(name, 0), name, file))
        for name in ("batch", "prompt", "output", "context")
    }
    first_s = numbers["batch"] * numbers["prompt"] / rates["prefill_tokens_per_s"]
    step_s = _number(entry["decode_step_s"], "decode_step_s", file)
    whole_s = first_s + (numbers["output"] - 1) * step_s
    context = numbers["context"]
    input_len = context + numbers["prompt"]
    return RunRecord(
        commit="",
        command="m2 bench engine",
        machine=str(entry["machine"])[:_MAX_TEXT],
        model=str(entry["model"])[:_MAX_TEXT],
        engine="own",
        engine_version="",
        input_len=input_len,
        output_len=numbers["output"],
        concurrency=numbers["batch"],
        ttft_ms=first_s * 1000,
        tpot_ms=step_s * 1000,
        output_tokens_per_s=numbers["batch"] * numbers["output"] / whole_s if whole_s else 0.0,
        extra=(("parallelism", "TP1"), ("prefix_hit", str(context / max(1, input_len)))),
    )


def _run(record: RunRecord, file: Path, file_date: str) -> Run:
    extra = dict(record.extra)
    replicas, cut = _cut(record, extra)
    try:
        prefix_hit = float(extra.get("prefix_hit", "0"))
        day = date.fromisoformat(extra.get("date", file_date)[:10]).isoformat()
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    if not 0 <= prefix_hit <= 1:
        raise UsageError(f"{file}: prefix_hit is {prefix_hit}; a share from 0 to 1 is needed")
    return Run(
        record=record,
        file=file.name,
        date=day,
        hardware=_hardware(extra.get("hardware", record.machine)),
        cut=cut,
        num_replicas=replicas,
        kv_cache_dtype=extra.get("kv_cache_dtype", "auto"),
        prefix_hit=prefix_hit,
    )


def _hardware(text: str) -> Hardware | None:
    """A machine as typed, or a single card by its driver's name."""
    try:
        return parse_hardware(text)
    except UsageError:
        row = accelerator_of_driver(text)
        return None if row is None else Hardware((DeviceGroup(row, 1),))


def _cut(record: RunRecord, extra: Mapping[str, str]) -> tuple[int, Parallelism | None]:
    if "parallelism" in extra:
        return parse_cut(extra["parallelism"])
    try:
        words = shlex.split(record.command)
    except ValueError:
        return 1, None
    pairs = [word.partition("=")[::2] for word in words]
    following = [value or after for (_, value), after in zip(pairs, [*words[1:], ""], strict=False)]
    sizes: dict[str, int] = {}
    for (flag, _), value in zip(pairs, following, strict=True):
        if flag in _FLAGS and value.isdecimal() and len(value) <= 4 and int(value) > 0:
            sizes[_FLAGS[flag]] = int(value)
    if not sizes:
        return 1, None
    if record.engine == "sglang":  # --tp-size counts all ranks there
        sizes["tensor"] = max(1, sizes.get("tensor", 1) // sizes.get("data", 1))
    is_expert = any(flag in ("--enable-expert-parallel", "--ep-size") for flag, _ in pairs)
    return 1, _parallelism(sizes, is_expert)


def _parallelism(sizes: Mapping[str, int], is_expert: bool) -> Parallelism:
    return Parallelism(
        tensor=sizes.get("tensor", 1),
        pipeline=sizes.get("pipeline", 1),
        data=sizes.get("data", 1),
        expert_parallel=is_expert,
        decode_context=sizes.get("decode_context", 1),
        prefill_context=sizes.get("prefill_context", 1),
    )
