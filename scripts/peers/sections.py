"""What is compared with what, with which options, and the targets."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.peers.figures import (
    DECODE,
    LOAD,
    PREFILL,
    READ_RATE,
    SHARE,
    result_line,
)
from scripts.peers.processes import Contender, Program, Worker
from scripts.peers.rounds import Case, Target
from scripts.peers.serve_compare import serve
from scripts.peers.servers import vllm_env
from scripts.peers.setup import HERE, Setup


@dataclass(frozen=True)
class Group:
    """Formats of the same bits. Every tuple of `ours` is judged by its best; so are the files."""

    name: str
    ours: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]
    decode_over_ik: float
    prefill_over_ik: float

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(format for one in self.ours for format in one)

    @property
    def ik_files(self) -> tuple[str, ...]:
        return tuple(file for file in self.files if file != "nvfp4")  # which ik_llama.cpp lacks


GROUPS = (
    Group("bf16", (("bf16",),), ("bf16",), 1.1, 1.2),
    Group("8bit", (("int8", "fp8"),), ("q8_0",), 1.2, 1.5),
    Group("4bit", (("nvfp4",), ("int4",)), ("q4_0", "nvfp4"), 1.2, 1.5),
)
DECODE_OVER_VLLM, DECODE_4BIT_OVER_LLAMA, PREFILL_OVER_LLAMA, BATCH_OVER_BEST = 2.5, 2.0, 3.0, 2.0
BATCHES = (8, 32)
LEAST_BANDWIDTH_SHARE = 0.95
LONGEST_LOAD_S = 3.0
MOST_STEP_OVER_BYTES = 1.15  # at 8,192 cached tokens, beside a step at 64
STEP_PROMPT = 16
# At most so many layers of M2.5's widths: what fits beside what making random weights takes.
WIDE_LAYERS = {"nvfp4": 62, "int4": 62, "int8": 2, "bf16": 1}
WIDE_NVFP4 = ("nvfp4", "nvfp4, attention and head bf16", "nvfp4, attention and head fp8")


def decode(setup: Setup) -> list[Case]:
    """128 tokens, one at a time, from an almost empty cache."""
    cases = []
    for group in GROUPS:
        contenders = _ours(setup, group, "--prompt", str(STEP_PROMPT), "--output", "128")
        contenders += _theirs(setup, group, "-p", "0", "-n", "128", "-r", "3")
        targets = []
        for formats in group.ours:
            ours = _names("ours", formats)
            targets.append(Target(DECODE, ours, _ik_names(group), group.decode_over_ik))
            if group.name == "4bit":
                theirs = _names("llama.cpp", group.files)
                targets.append(Target(DECODE, ours, theirs, DECODE_4BIT_OVER_LLAMA))
        if group.name == "bf16":
            vllm = _vllm(setup)
            contenders.append(vllm)
            targets.append(Target(DECODE, ("ours bf16",), (vllm.name,), DECODE_OVER_VLLM))
        cases.append(Case("decode", group.name, tuple(contenders), tuple(targets)))
    return cases


def wide(setup: Setup) -> list[Case]:
    """The released models' widths, as many layers as fit; Q4_0 of the peers beside our int4, and
    NVFP4 experts with attention and head as published and requantised."""
    cases = []
    for format, most in WIDE_LAYERS.items():
        formats = WIDE_NVFP4 if format == "nvfp4" else (format,)
        layers = str(min(setup.wide_layers, most))
        options = ("--layers", layers, "--prompt", str(STEP_PROMPT), "--output", "33")
        contenders: list[Contender] = [
            setup.own(f"ours {one}", one, *options, shape=setup.wide_shape) for one in formats
        ]
        targets = tuple(
            Target(SHARE, (ours.name,), (), LEAST_BANDWIDTH_SHARE) for ours in contenders
        )
        if format == "int4":
            runs = ("wide-q4_0.gguf", "-p", "0", "-n", "32", "-r", "3")
            contenders.append(setup.llama_bench("llama.cpp q4_0", setup.llama_bin, *runs))
            contenders.append(setup.llama_bench("ik_llama.cpp q4_0", setup.ik_bin, *runs))
        cases.append(Case("wide", format, tuple(contenders), targets, (DECODE,)))
    return cases


def prefill(setup: Setup) -> list[Case]:
    """A prompt of 512 tokens."""
    cases = []
    for group in GROUPS:
        contenders = _ours(setup, group, "--prompt", "512", "--output", "2")
        contenders += _theirs(setup, group, "-p", "512", "-n", "0", "-r", "3")
        targets = []
        for formats in group.ours:
            ours, llama = _names("ours", formats), _names("llama.cpp", group.files)
            targets.append(Target(PREFILL, ours, _ik_names(group), group.prefill_over_ik))
            targets.append(Target(PREFILL, ours, llama, PREFILL_OVER_LLAMA))
        cases.append(Case("prefill", group.name, tuple(contenders), tuple(targets)))
    return cases


def batch(setup: Setup) -> list[Case]:
    """Several sequences of 128 tokens, 64 more of each; ik_llama.cpp with and without flash
    attention, since it has aborted with it on several sequences."""
    prompt, output = 128, 64
    cases = []
    for group in GROUPS:
        for size in BATCHES:
            own = ("--batch", str(size), "--prompt", str(prompt), "--output", str(output))
            contenders = _ours(setup, group, *own, "--repeat", "1")
            limits = ("-c", str(size * (prompt + output)), "-b", "2048", "-ub", "512")
            run = (*limits, "-npp", str(prompt), "-ntg", str(output), "-npl", str(size))
            theirs: list[Contender] = [
                setup.batched(f"llama.cpp {file}", setup.llama_bin, f"mid-{file}.gguf", *run)
                for file in group.files
            ]
            for file in group.ik_files:
                on = (f"mid-{file}.gguf", *run, "-rtr")
                theirs.append(setup.batched(f"ik_llama.cpp {file}", setup.ik_bin, *on))
                off = (*on, "-no-fa")
                theirs.append(setup.batched(f"ik_llama.cpp -no-fa {file}", setup.ik_bin, *off))
            against = tuple(one.name for one in theirs)
            targets = tuple(
                Target(DECODE, _names("ours", formats), against, BATCH_OVER_BEST)
                for formats in group.ours
            )
            contenders += theirs
            cases.append(Case("batch", f"{group.name} x{size}", tuple(contenders), targets))
    return cases


def context(setup: Setup) -> list[Case]:
    """A step with 8,192 tokens cached takes no longer than its bytes say, beside one with 64."""
    step = ("--prompt", str(STEP_PROMPT), "--output", "64")
    contenders = tuple(
        setup.own(f"ours at {tokens}", "bf16", "--context", str(tokens - STEP_PROMPT), *step)
        for tokens in (64, 8192)
    )
    short, long = (one.name for one in contenders)
    target = Target(READ_RATE, (long,), (short,), 1 / MOST_STEP_OVER_BYTES)
    return [Case("context", "bf16", contenders, (target,), (DECODE,))]


def load(setup: Setup) -> list[Case]:
    """The checkpoint from the warm file cache until the model is there."""
    argv = (str(setup.python), str(HERE / "load_time.py"), str(setup.models / "mid"))
    ours = Program("ours bf16", argv, result_line)
    target = Target(LOAD, (ours.name,), (), LONGEST_LOAD_S, "at most")
    return [Case("load", "bf16", (ours,), (target,))]


SECTIONS = {
    "decode": decode,
    "wide": wide,
    "prefill": prefill,
    "context": context,
    "load": load,
    "batch": batch,
    "serve": serve,
}


def _ours(setup: Setup, group: Group, *options: str) -> list[Contender]:
    return [setup.own(f"ours {format}", format, *options) for format in group.formats]


def _theirs(setup: Setup, group: Group, *options: str) -> list[Contender]:
    found: list[Contender] = []
    for file in group.files:
        run = (f"mid-{file}.gguf", *options)
        found.append(setup.llama_bench(f"llama.cpp {file}", setup.llama_bin, *run))
    for file in group.ik_files:
        run = (f"mid-{file}.gguf", *options)
        found.append(setup.llama_bench(f"ik_llama.cpp {file}", setup.ik_bin, *run))
        repacked = (*run, "-rtr", "1")
        found.append(setup.llama_bench(f"ik_llama.cpp -rtr {file}", setup.ik_bin, *repacked))
    return found


def _ik_names(group: Group) -> tuple[str, ...]:
    plain = _names("ik_llama.cpp", group.ik_files)
    return (*plain, *_names("ik_llama.cpp -rtr", group.ik_files))


def _names(engine: str, formats: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{engine} {format}" for format in formats)


def _vllm(setup: Setup) -> Worker:
    argv = (str(setup.vllm_python), str(HERE / "vllm_worker.py"), str(setup.models / "mid"))
    return Worker("vLLM bf16", argv, vllm_env(setup.vllm_python), setup.logs / "vllm_worker.log")
