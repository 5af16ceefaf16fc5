#!/usr/bin/env bash
# Eco-Tech/MiniMax-M2.5-w8a8-QuaRot on 16xascend-910c: vllm-ascend 0.18.0
# Port 8000: HTTP: clients, /health and /metrics, on node 0
# A product built on M2.5 carries its notice.
# In front of it: m2 serve Eco-Tech/MiniMax-M2.5-w8a8-QuaRot --upstream http://127.0.0.1:8000 --port 8001
set -euo pipefail

CACHE="${HOME}/.cache/huggingface"
mkdir -p "${CACHE}"

# Settings of the host; the engine starts without them, slower.
as_root() {
    if [ "$(id -u)" = 0 ]; then sh -c "$1"; else sudo sh -c "$1"; fi || echo "not done: $1" >&2
}
# pinned memory stays
as_root 'sysctl -w vm.swappiness=0'
# cores at full clock
as_root 'echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor'

command=(
    docker run --rm --init --name minimax-m2-5
    --publish 127.0.0.1:8000:8000
    --device /dev/davinci0
    --device /dev/davinci1
    --device /dev/davinci2
    --device /dev/davinci3
    --device /dev/davinci4
    --device /dev/davinci5
    --device /dev/davinci6
    --device /dev/davinci7
    --device /dev/davinci8
    --device /dev/davinci9
    --device /dev/davinci10
    --device /dev/davinci11
    --device /dev/davinci12
    --device /dev/davinci13
    --device /dev/davinci14
    --device /dev/davinci15
    --device /dev/davinci_manager
    --device /dev/devmm_svm
    --device /dev/hisi_hdc
    --shm-size 32g
    --mount type=bind,source=/usr/local/dcmi,target=/usr/local/dcmi,readonly
    --mount type=bind,source=/usr/local/Ascend/driver/tools/hccn_tool,target=/usr/local/Ascend/driver/tools/hccn_tool,readonly
    --mount type=bind,source=/usr/local/bin/npu-smi,target=/usr/local/bin/npu-smi,readonly
    --mount type=bind,source=/usr/local/Ascend/driver/lib64,target=/usr/local/Ascend/driver/lib64,readonly
    --mount type=bind,source=/usr/local/Ascend/driver/version.info,target=/usr/local/Ascend/driver/version.info,readonly
    --mount type=bind,source=/etc/ascend_install.info,target=/etc/ascend_install.info,readonly
    --mount type=bind,source="${CACHE}",target=/root/.cache/huggingface
    # from the caller's environment, where it is set
    --env HF_TOKEN
    # collectives on the vector cores
    --env HCCL_OP_EXPANSION_MODE=AIV
    # weights take long to load
    --health-cmd 'python3 -c '"'"'import urllib.request as u; u.urlopen('"'"'"'"'"'"'"'"'http://127.0.0.1:8000/health'"'"'"'"'"'"'"'"', timeout=5)'"'"'' --health-start-period 3420s --health-interval 10s
    quay.io/ascend/vllm-ascend:v0.18.0-a3 vllm serve Eco-Tech/MiniMax-M2.5-w8a8-QuaRot
    # every address of the container; docker publishes the port
    --host 0.0.0.0
    # HTTP, with /health and /metrics
    --port 8000
    # four ranks
    --tensor-parallel-size 4
    # four replicas of attention
    --data-parallel-size 4
    # whole experts
    --enable-expert-parallel
    # msModelSlim's layout
    --quantization ascend
    # the next step is prepared early
    --async-scheduling
    # decode as a graph
    --compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}'
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
