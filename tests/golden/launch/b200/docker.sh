#!/usr/bin/env bash
# MiniMaxAI/MiniMax-M2.5 on 4xb200: vllm 0.20.2
# Port 8000: HTTP: clients, /health and /metrics, on node 0
# A product built on M2.5 carries its notice.
# In front of it: m2 serve MiniMaxAI/MiniMax-M2.5 --upstream http://127.0.0.1:8000 --port 8001
set -euo pipefail

CACHE="${HOME}/.cache/huggingface"
mkdir -p "${CACHE}"

command=(
    docker run --rm --init --name minimax-m2-5
    --publish 127.0.0.1:8000:8000
    --gpus 4
    --shm-size 32g
    --mount type=bind,source="${CACHE}",target=/root/.cache/huggingface
    # from the caller's environment, where it is set
    --env HF_TOKEN
    # weights take long to load
    --health-cmd 'python3 -c '"'"'import urllib.request as u; u.urlopen('"'"'"'"'"'"'"'"'http://127.0.0.1:8000/health'"'"'"'"'"'"'"'"', timeout=5)'"'"'' --health-start-period 3240s --health-interval 10s
    --entrypoint vllm vllm/vllm-openai:v0.20.2 serve MiniMaxAI/MiniMax-M2.5
    # every address of the container; docker publishes the port
    --host 0.0.0.0
    # HTTP, with /health and /metrics
    --port 8000
    # four ranks
    --tensor-parallel-size 4
    # prompt and answer
    --max-model-len 32768
    # full graphs fail
    --compilation-config '{"cudagraph_mode": "PIECEWISE"}'
    # direct clients get tool calls
    --enable-auto-tool-choice
    # M2's tags
    --tool-call-parser minimax_m2
    # thinking in a field of its own
    --reasoning-parser minimax_m2
    # one name for clients
    --served-model-name MiniMax-M2.5
)

exec "${command[@]}"
