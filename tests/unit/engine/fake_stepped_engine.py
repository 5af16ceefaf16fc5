"""An engine process without a model: the real loop of process.py around a counting engine.

    python fake_stepped_engine.py --fd N

Request by request it counts up from the last prompt token, one token a step. `model_path` of the
config is the folder in which it notes its starts, and its name says what goes wrong:
"fails" and "crashes" at the first start, "fails-later" and "crashes-later" at each start after it,
"never-steps" and "slow-step" once a request is there; in the latter a layer is computed every
heartbeat, as in a step of minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from m2serve.engine.config import EngineConfig
from m2serve.engine.process import Progress, run
from m2serve.engine.request import EngineInfo, EngineOutput, EngineRequest, EngineStats
from m2serve.errors import CheckpointError, RequestError

VOCAB_SIZE = 1_000_000
BROKEN_TOKEN = 999_999
REFUSED_TOKEN = 999_998


class CountingEngine:
    def __init__(self, config: EngineConfig, num_starts: int) -> None:
        self._hangs = "never-steps" in config.model_path
        self._is_slow = "slow-step" in config.model_path
        self._layers = 0
        self._requests: dict[str, EngineRequest] = {}
        self._num_made: dict[str, int] = {}
        self._step = 0
        self.info = EngineInfo(
            model=f"start {num_starts}",
            device="none",
            dtype="none",
            max_model_len=100_000,
            vocab_size=VOCAB_SIZE,
            used_vocab_size=VOCAB_SIZE,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            num_kv_blocks=100_000,
            kv_block_size=16,
            enable_prefix_caching=False,
            load_time_s=0.0,
        )

    def add(self, request: EngineRequest) -> None:
        if request.prompt_token_ids[-1] == REFUSED_TOKEN:
            raise RequestError("the engine does not like this prompt")
        self._requests[request.request_id] = request
        self._num_made[request.request_id] = 0

    def abort(self, request_ids: Iterable[str]) -> list[EngineOutput]:
        known = [name for name in request_ids if self._requests.pop(name, None)]
        return [EngineOutput(request_id=name, finish_reason="abort") for name in known]

    def has_work(self) -> bool:
        return bool(self._requests)

    def layers_computed(self) -> int:
        self._layers += self._is_slow
        return self._layers

    def stats(self) -> EngineStats:
        return EngineStats(step=self._step, num_running_reqs=len(self._requests))

    def step(self) -> list[EngineOutput]:
        if self._hangs or self._is_slow:
            time.sleep(1000)
        time.sleep(0.001)
        self._step += 1
        return [self._next(request) for request in list(self._requests.values())]

    def _next(self, request: EngineRequest) -> EngineOutput:
        if request.prompt_token_ids[-1] == BROKEN_TOKEN:
            raise RuntimeError("the fake forward pass fails")
        name = request.request_id
        self._num_made[name] += 1
        token_id = request.prompt_token_ids[-1] + self._num_made[name]
        finished = self._num_made[name] == request.sampling.max_tokens
        if finished:
            del self._requests[name]
        reason = "length" if finished else None
        return EngineOutput(request_id=name, token_ids=[token_id], finish_reason=reason)


def load(config: EngineConfig, progress: Progress) -> CountingEngine:
    folder = Path(config.model_path)
    num_starts = len(list(folder.iterdir())) + 1
    (folder / str(num_starts)).touch()
    progress(0.5)
    goes_wrong = num_starts > 1 if folder.name.endswith("later") else True
    if goes_wrong and folder.name.startswith("fails"):
        raise CheckpointError("The tensor model.norm.weight is missing.")
    if goes_wrong and folder.name.startswith("crashes"):
        raise RuntimeError("a bug in the loader")
    return CountingEngine(config, num_starts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    sys.exit(run(parser.parse_args().fd, load))
