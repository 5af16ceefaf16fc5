"""The three servers: how each is started, asked and read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2serve.client import TimedChunk
from scripts.peers.processes import started

MAX_MODEL_LEN = "2048"
_TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


@dataclass(frozen=True)
class Server:
    """A command line less its port, and the protocol of its completions.

    Ours is not frozen between rounds: the front would take the long silence of its engine for a
    hang. Idle, it wakes once a second.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    speaks_openai: bool = True
    may_be_frozen: bool = True

    @property
    def path(self) -> str:
        return "/v1/completions" if self.speaks_openai else "/completion"

    def start(self, port: int, log: Path) -> subprocess.Popen[str]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            return started(
                (*self.argv, "--host", "127.0.0.1", "--port", str(port)),
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def body(self, prompt_ids: list[int], num_tokens: int) -> dict[str, Any]:
        """Greedy, exactly `num_tokens`, nothing reused."""
        shared = {"prompt": prompt_ids, "temperature": 0, "ignore_eos": True, "stream": True}
        if not self.speaks_openai:
            return {**shared, "n_predict": num_tokens, "cache_prompt": False}
        options = {"stream_options": {"include_usage": True}}
        return {**shared, **options, "model": "m", "max_tokens": num_tokens}

    def has_token(self, chunk: TimedChunk) -> bool:
        """Whether a chunk brings generated text rather than closing figures."""
        if self.speaks_openai:
            return bool(chunk.data.get("choices"))
        return not chunk.data.get("stop", False)

    def num_tokens(self, chunk: TimedChunk) -> int | None:
        """The server's own count, which the last chunk has."""
        source = chunk.data.get("usage") if self.speaks_openai else chunk.data
        name = "completion_tokens" if self.speaks_openai else "tokens_predicted"
        return source.get(name) if source else None


def vllm_env(python: Path) -> dict[str, str]:
    """All cores, as its default leaves one to others; the OpenMP and, where it is installed, the
    allocator that its documentation advises."""
    env = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    }
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    advised = [str(found) for found in (_TCMALLOC, openmp) if found.exists()]
    return {**env, "LD_PRELOAD": ":".join(advised)} if advised else env


def own_server(m2: Path, model: Path, threads: int) -> Server:
    argv = (str(m2), "serve", str(model), "--served-model-name", "m")
    limits = ("--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", "32")
    options = (*limits, "--no-enable-prefix-caching", "--num-threads", str(threads))
    return Server("ours", (*argv, *options), {}, may_be_frozen=False)


def vllm_server(python: Path, model: Path) -> Server:
    argv = (str(python.with_name("vllm")), "serve", str(model), "--served-model-name", "m")
    limits = ("--max-model-len", MAX_MODEL_LEN, "--max-num-seqs", "32")
    options = ("--dtype", "bfloat16", *limits, "--kv-cache-memory-bytes", "1G")
    eager = ("--enforce-eager",) if os.environ.get("VLLM_EAGER") == "1" else ()
    return Server("vLLM", (*argv, *options, "--no-enable-prefix-caching", *eager), vllm_env(python))


def llama_server(folder: Path, model: Path, threads: int) -> Server:
    argv = (str(folder / "llama-server"), "-m", str(model), "-t", str(threads))
    options = ("-tb", str(threads), "-c", "65536", "--parallel", "32", "--no-ui")
    return Server("llama-server", (*argv, *options, "--cache-ram", "0"), {}, speaks_openai=False)
