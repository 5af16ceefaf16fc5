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
from scripts.peers.tables import COLUMNS, Origin, csv_rows, markdown

PEERS = ROOT / "build" / "peers"


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # closes who is open
    setup = Setup(
        m2=Path(sys.executable).with_name("m2"),
        python=Path(sys.executable),
        llama_bin=place("LLAMA_BIN", PEERS / "llama" / "bin"),
        ik_bin=place("IK_BIN", PEERS / "ik_llama" / "bin"),
        vllm_python=place("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"),
        models=arguments.models.resolve(),
        logs=PEERS / "logs",
        threads=arguments.num_threads,
        shape=arguments.shape,
        wide_shape=arguments.wide_shape,
        wide_layers=arguments.wide_layers,
        requests=tuple(map(int, arguments.requests.split(","))),
    )
    left_out = tuple(word for word in arguments.without.split(",") if word)
    names = arguments.sections.split(",")
    has_models = (setup.models / "mid" / "config.json").exists()
    if not has_models and (arguments.report is None or "serve" in names):
        sys.exit(f"{setup.models} has no models; make them with scripts.peers.make_models")
    cases = [without(case, left_out) for name in names for case in SECTIONS[name](setup)]
    file = arguments.report
    if file is not None:
        report(cases, file, arguments)
        return
    check(cases, setup)
    file = PEERS / "results" / time.strftime("%Y%m%dT%H%M%SZ.jsonl", time.gmtime())
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        for case in cases:
            run_case(case, arguments.rounds, file)
    finally:  # what was measured is not lost by what came after
        if file.exists():
            report(cases, file, arguments)


def place(variable: str, default: Path) -> Path:
    """Programs run in other folders; a link, such as a virtual environment's python, stays one."""
    return Path(os.environ.get(variable, default)).absolute()


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
    parser.add_argument("--requests", default="6,24,64", help="at concurrency 1, 8 and 32")
    parser.add_argument("--report", type=Path, help="samples of an earlier run")
    parser.add_argument("--machine", default="", help="append rows to perf/<machine>.csv")
    arguments = parser.parse_args(words)
    unknown = set(arguments.sections.split(",")) - SECTIONS.keys()
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return arguments


def check(cases: Sequence[Case], setup: Setup) -> None:
    """Say what is missing before an hour is spent: programs, and the files they are given."""
    missing: dict[str, str] = {}
    for case in cases:
        for contender in case.contenders:
            program, *words = contender.argv
            files = [word for word in words if word.startswith(str(setup.models))]
            for path in (program, *files):
                if not Path(path).exists():
                    missing.setdefault(path, contender.name)
    if missing:
        named = "; ".join(f"{path} (of {name})" for path, name in missing.items())
        sys.exit(
            f"not there: {named}. docs/peers.md says how to get them; --without NAME leaves out "
            "contenders whose names start so"
        )


def without(case: Case, left_out: tuple[str, ...]) -> Case:
    """Neither measured nor held against ours."""
    kept = tuple(one for one in case.contenders if not one.name.startswith(left_out))
    targets = [
        replace(one, against=tuple(name for name in one.against if not name.startswith(left_out)))
        for one in case.targets
    ]
    judged = [
        new
        for new, old in zip(targets, case.targets, strict=True)
        if new.against or not old.against
    ]
    return replace(case, contenders=kept, targets=tuple(judged))


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
    path = ROOT / "perf" / f"{arguments.machine}.csv"
    header = "" if path.exists() else f"{','.join(COLUMNS)}\n"
    with path.open("a", encoding="utf-8") as out:
        out.write(header + rows)


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
