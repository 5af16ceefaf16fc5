#!/usr/bin/env bash
# lukealonso/MiniMax-M2.5-NVFP4 on 2xrtx-pro-6000: sglang 0.5.10.post1
# Port 8000: HTTP: clients, /health and /metrics, on node 0
# A product built on M2.5 carries its notice.
# In front of it: m2 serve lukealonso/MiniMax-M2.5-NVFP4 --upstream http://127.0.0.1:8000 --port 8001
set -euo pipefail

CACHE="${HOME}/.cache/huggingface"
mkdir -p "${CACHE}"

command=(
    docker run --rm --init --name minimax-m2-5
    --publish 127.0.0.1:8000:8000
    --gpus 2
    --shm-size 32g
    --mount type=bind,source="${CACHE}",target=/root/.cache/huggingface
    # from the caller's environment, where it is set
    --env HF_TOKEN
    # cards behind one bridge copy directly
    --env NCCL_P2P_LEVEL=PHB
    # weights take long to load
    --health-cmd 'python3 -c '"'"'import urllib.request as u; u.urlopen('"'"'"'"'"'"'"'"'http://127.0.0.1:8000/health'"'"'"'"'"'"'"'"', timeout=5)'"'"'' --health-start-period 2280s --health-interval 10s
    lmsysorg/sglang:v0.5.10.post1 python3 -m sglang.launch_server --model-path lukealonso/MiniMax-M2.5-NVFP4
    # every address of the container; docker publishes the port
    --host 0.0.0.0
    # HTTP, with /health and /metrics
    --port 8000
    # two ranks
    --tp-size 2
    # prompt and answer
    --context-length 32768
    # its buffers need NVLink
    --disable-custom-all-reduce
    # M2's tags
    --tool-call-parser minimax-m2
    # thinking in a field of its own
    --reasoning-parser minimax
    # one name for clients
    --served-model-name MiniMax-M2.5
)

exec "${command[@]}"
