"""Stands for `vllm serve`: takes its arguments, starts a child, answers like FakeUpstream.

python engine_command.py MODEL --port N [--host H] [--fail] [--slow] [--stubborn] [...]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fake_upstream import FakeUpstream


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    arguments, _ = parser.parse_known_args()
    # A grandchild in a session of its own, which the group of its parent does not reach.
    worker = subprocess.Popen(["sleep", "300"], start_new_session=True)
    print(f"worker {worker.pid}", flush=True)
    print("Loading safetensors checkpoint shards:  50% Completed | 1/2", flush=True)
    if arguments.fail:
        print("ValueError: the model is too large", flush=True)
        sys.exit(3)
    if arguments.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(serve(arguments.port, arguments.slow))


async def serve(port: int, slow: bool) -> None:
    if not slow:
        await FakeUpstream(port=port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
