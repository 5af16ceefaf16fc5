"""vLLM without HTTP: measures one sequence's decoding each time a line comes in.

Run by vLLM's own Python (scripts/install_vllm_cpu.sh). The time of 128 tokens less that of one is
127 steps. VLLM_EAGER=1 skips compilation, for a dry run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

PROMPT_IDS = list(range(300, 316))
OUTPUT = 128
REPEATS = 3


def main() -> None:
    from vllm import LLM

    llm = LLM(
        model=sys.argv[1],
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=32,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        enforce_eager=os.environ.get("VLLM_EAGER") == "1",
    )
    for _ in sys.stdin:
        rates = sorted(decode_tokens_per_s(llm) for _ in range(REPEATS))
        result = {"decode_tokens_per_s": rates[REPEATS // 2]}
        print("RESULT " + json.dumps(result), flush=True)


def decode_tokens_per_s(llm: Any) -> float:
    return (OUTPUT - 1) / (generate_s(llm, OUTPUT) - generate_s(llm, 1))


def generate_s(llm: Any, num_tokens: int) -> float:
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    start = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": PROMPT_IDS}], sampling, use_tqdm=False)
    elapsed_s = time.perf_counter() - start
    found = len(outputs[0].outputs[0].token_ids)
    if found != num_tokens:
        sys.exit(f"{found} tokens were generated instead of {num_tokens}")
    return elapsed_s


if __name__ == "__main__":
    main()
