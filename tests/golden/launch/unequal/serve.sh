#!/usr/bin/env bash
# /models/MiniMax M2.5 'NVFP4' on 1xrtx-pro-6000+2xrtx-5090: vllm 0.20.2
# Port 8000: HTTP: clients, /health and /metrics, on node 0
# A product built on M2.5 carries its notice.
# In front of it: m2 serve '/models/MiniMax M2.5 '"'"'NVFP4'"'"'' --upstream http://127.0.0.1:8000 --port 8001
set -euo pipefail

# layers by memory
export VLLM_PP_LAYER_PARTITION=40,11,11
# cards by slot
export CUDA_DEVICE_ORDER=PCI_BUS_ID

command=(
    vllm serve '/models/MiniMax M2.5 '"'"'NVFP4'"'"''
    # clients of this machine alone
    --host 127.0.0.1
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
