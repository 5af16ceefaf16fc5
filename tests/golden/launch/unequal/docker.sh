#!/usr/bin/env bash
# /models/MiniMax M2.5 'NVFP4' on 1xrtx-pro-6000+2xrtx-5090: vllm 0.20.2
# Port 8000: HTTP: clients, /health and /metrics, on node 0
# A product built on M2.5 carries its notice.
# In front of it: m2 serve '/models/MiniMax M2.5 '"'"'NVFP4'"'"'' --upstream http://127.0.0.1:8000 --port 8001
set -euo pipefail

command=(
    docker run --rm --init --name minimax-m2-5
    --publish 127.0.0.1:8000:8000
    --gpus 3
    --shm-size 32g
    --mount 'type=bind,source=/models/MiniMax M2.5 '"'"'NVFP4'"'"',target=/models/MiniMax M2.5 '"'"'NVFP4'"'"',readonly'
    # from the caller's environment, where it is set
    --env HF_TOKEN
    # layers by memory
    --env VLLM_PP_LAYER_PARTITION=40,11,11
    # cards by slot
    --env CUDA_DEVICE_ORDER=PCI_BUS_ID
    # weights take long to load
    --health-cmd 'python3 -c '"'"'import urllib.request as u; u.urlopen('"'"'"'"'"'"'"'"'http://127.0.0.1:8000/health'"'"'"'"'"'"'"'"', timeout=5)'"'"'' --health-start-period 2280s --health-interval 10s
    --entrypoint vllm vllm/vllm-openai:v0.20.2 serve '/models/MiniMax M2.5 '"'"'NVFP4'"'"''
    # every address of the container; docker publishes the port
    --host 0.0.0.0
    # HTTP, with /health and /metrics
    --port 8000
    # three stages
    --pipeline-parallel-size 3
    # prompt and answer
    --max-model-len 4096
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
