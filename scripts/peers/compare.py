"""Our engine beside llama.cpp, ik_llama.cpp and vLLM's CPU build, on this machine, interleaved.

    python -m scripts.peers.compare [--sections decode,prefill,...] [--rounds 5]
    python -m scripts.peers.compare --report build/peers/results/FILE.jsonl --machine epyc-avx2-2c

Samples go to build/peers/results/<time>.jsonl as they come; the second form makes the table and,
with --machine, the rows of perf/<machine>.csv of them. docs/peers.md says what has to be there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scripts.peers.processes import ROOT
from scripts.peers.rounds import Case, read_samples, run_case
from scripts.peers.sections import SECTIONS
from scripts.peers.setup import Setup
from scripts.peers.tables import Origin, csv_rows, markdown

PEERS = ROOT / "build" / "peers"


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # closes who is open
    setup = Setup(
        m2=Path(sys.executable).with_name("m2"),
        python=Path(sys.executable),
        llama_bin=Path(os.environ.get("LLAMA_BIN", PEERS / "llama" / "bin")),
        ik_bin=Path(os.environ.get("IK_BIN", PEERS / "ik_llama" / "bin")),
        vllm_python=Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python")),
        models=arguments.models.resolve(),
        logs=PEERS / "logs",
        threads=arguments.num_threads,
        shape=arguments.shape,
        wide_shape=arguments.wide_shape,
        wide_layers=arguments.wide_layers,
        requests=tuple(map(int, arguments.requests.split(","))),
    )
    names = arguments.sections.split(",")
    cases = [case for name in names for case in SECTIONS[name](setup)]
    file = arguments.report
    if file is None:
        check(setup)
        file = PEERS / "results" / time.strftime("%Y%m%dT%H%M%SZ.jsonl", time.gmtime())
        file.parent.mkdir(parents=True, exist_ok=True)
        measure(cases, arguments, file)
    report(cases, file, arguments)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare with other engines on this CPU.")
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", default="", help="contenders to leave out, by how they start")
    parser.add_argument("--models", type=Path, default=PEERS / "models")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--shape", default="mid", help="miniature: a dry run")
    parser.add_argument("--wide-shape", default="m2.5", help="miniature: a dry run")
    parser.add_argument("--wide-layers", type=int, default=3)
    parser.add_argument("--requests", default="4,16,32", help="at concurrency 1, 8 and 32")
    parser.add_argument("--report", type=Path, help="samples of an earlier run")
    parser.add_argument("--machine", default="", help="append rows to perf/<machine>.csv")
    arguments = parser.parse_args(words)
    unknown = set(arguments.sections.split(",")) - SECTIONS.keys()
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return arguments


def check(setup: Setup) -> None:
    """Say what is missing before an hour is spent."""
    if not (setup.models / "mid" / "config.json").exists():
        sys.exit(f"{setup.models} has no models; make them with scripts.peers.make_models")
    for program in (setup.m2, setup.llama_bin / "llama-bench"):
        if not program.exists():
            sys.exit(f"{program} is not there; docs/peers.md says how to get it")


def measure(cases: list[Case], arguments: argparse.Namespace, file: Path) -> None:
    left_out = tuple(word for word in arguments.without.split(",") if word)
    for case in cases:
        kept = tuple(one for one in case.contenders if not one.name.startswith(left_out))
        run_case(replace(case, contenders=kept), arguments.rounds, file)


def report(cases: list[Case], file: Path, arguments: argparse.Namespace) -> None:
    samples = read_samples(file)
    table = markdown(cases, samples)
    file.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    if not arguments.machine:
        return
    sections = ",".join(dict.fromkeys(sample.section for sample in samples))
    command = f"python -m scripts.peers.compare --sections {sections}"
    origin = Origin(samples[0].time[:10], commit(), arguments.machine, command)
    rows = csv_rows(cases, samples, origin)
    with (ROOT / "perf" / f"{arguments.machine}.csv").open("a", encoding="utf-8") as out:
        out.write(rows)


def commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    found = subprocess.run(
        [git, "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
