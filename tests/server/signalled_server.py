"""`run_server` with a fake engine in a process of its own; prints its port when ready.

python signalled_server.py SHUTDOWN_TIMEOUT_S [fail|PORT]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_engine import FakeEngine, goes_on, tiny_tokenizer

from m2serve.cli.private_server import free_port
from m2serve.engine.request import EngineInfo
from m2serve.errors import CheckpointError, M2Error
from m2serve.server.config import ServerConfig
from m2serve.server.run import run_server


class FailingEngine(FakeEngine):
    async def wait_ready(self) -> EngineInfo:
        raise CheckpointError("shard 3 is truncated")


def main() -> None:
    timeout_s, how = float(sys.argv[1]), sys.argv[2:]
    port = free_port() if how in ([], ["fail"]) else int(how[0])
    engine = FailingEngine() if how == ["fail"] else FakeEngine(goes_on())
    config = ServerConfig(("m",), port=port, shutdown_timeout_s=timeout_s)
    try:
        run_server(config, engine, tiny_tokenizer(), lambda info: print(port, flush=True))
    except M2Error as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        raise SystemExit(1) from None
    print("closed" if engine.closed else "not closed", len(engine.active), flush=True)


main()
