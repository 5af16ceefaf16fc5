"""Asks the quiz, scores it, compares runs.

    python -m training.quiz run ROWS --model FOLDER [--dtype bfloat16] [--cpu-activation int8]
    python -m training.quiz run ROWS --url http://127.0.0.1:8000 --tokenizer FOLDER [--name N]
    python -m training.quiz report ROWS
    python -m training.quiz compare ROWS OTHER_ROWS...

The first asks the engine in this process, the second any OpenAI-compatible server. ROWS is a file
of JSON lines, one a question. Greedy unless --temperature says otherwise; M2's own
settings are --temperature 1 --top-p 0.95 --top-k 40. --sets limits the run to some of the sets;
--salt TEXT asks other questions of the same kinds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from m2serve.chat.tokenizer import Tokenizer
from training.quiz_answers import Sampling, ask_endpoint, ask_engine
from training.quiz_items import Item, quiz_items
from training.quiz_report import comparison, load_rows, report
from training.quiz_scoring import grade

# Fields of EngineConfig that a run with --model may set.
_ENGINE_SETTINGS = {
    "dtype": "auto",
    "device": "auto",
    "kv_cache_dtype": "auto",
    "cpu_activation": "auto",
    "attention_format": "",
    "head_format": "",
}


def run(options: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(options.tokenizer or options.model)
    items = _chosen(quiz_items(tokenizer, options.salt), options)
    sampling = Sampling(options.temperature, options.top_p, options.top_k, options.seed)
    if options.model:
        settings = {name: getattr(options, name) for name in _ENGINE_SETTINGS}
        answers = ask_engine(items, options.model, settings, sampling)
    else:
        answers = ask_endpoint(items, options.url, options.name, sampling, options.concurrency)
    with options.rows.open("w", encoding="utf-8") as file:
        for number, (item, answer) in enumerate(zip(items, answers, strict=True), 1):
            file.write(json.dumps(asdict(grade(item, answer)), ensure_ascii=False) + "\n")
            if number % 100 == 0:
                print(f"{number} of {len(items)}", file=sys.stderr, flush=True)
    print(report(load_rows(options.rows)))


def _chosen(items: Sequence[Item], options: argparse.Namespace) -> list[Item]:
    """Of the sets asked for; with --every N, each N-th of them."""
    wanted = [item for item in items if not options.sets or item.set in options.sets]
    return wanted[:: options.every]


def main() -> None:
    parser = argparse.ArgumentParser(description="The miniature's quiz.")
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("run")
    asking.add_argument("rows", type=Path)
    target = asking.add_mutually_exclusive_group(required=True)
    target.add_argument("--model", type=Path)
    target.add_argument("--url")
    asking.add_argument("--tokenizer", type=Path, help="with --url: the folder of the tokenizer")
    asking.add_argument("--name", default="miniature")
    for name, default in _ENGINE_SETTINGS.items():
        asking.add_argument("--" + name.replace("_", "-"), default=default)
    asking.add_argument("--sets", nargs="*", default=[])
    asking.add_argument("--every", type=int, default=1)
    asking.add_argument("--salt", default="")
    asking.add_argument("--temperature", type=float, default=0.0)
    asking.add_argument("--top-p", type=float, default=1.0)
    asking.add_argument("--top-k", type=int, default=0)
    asking.add_argument("--seed", type=int, default=0)
    asking.add_argument("--concurrency", type=int, default=8)
    for name in ("report", "compare"):
        commands.add_parser(name).add_argument("rows", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "run":
        if options.url and not options.tokenizer:
            parser.error("--url needs --tokenizer, the folder whose tokens the long texts count")
        run(options)
    elif options.command == "report":
        for path in options.rows:
            print(report(load_rows(path)))
    else:
        print(comparison([(path.stem, load_rows(path)) for path in options.rows]))


if __name__ == "__main__":
    main()
