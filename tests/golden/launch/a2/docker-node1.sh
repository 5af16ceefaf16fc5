#!/usr/bin/env bash
# MiniMaxAI/MiniMax-M2.5 on 8xascend-910b3 on each of 2 nodes: vllm-ascend 0.18.0
# Start node 0 first: the others look for it, and it waits for them
# Port 8000: HTTP: clients, /health and /metrics, on node 0
# Port 2347: data-parallel ranks of the other nodes, between nodes only
# A product built on M2.5 carries its notice.
# In front of it: m2 serve MiniMaxAI/MiniMax-M2.5 --upstream http://127.0.0.1:8000 --port 8001
set -euo pipefail

NIC=enp67s0f0np0
THIS_IP=${THIS_IP:-$(ip -4 -o addr show dev "$NIC" | awk '{sub("/.*", "", $4); print $4; exit}')}
: "${NODE0_IP:?the address of node 0}"

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
    --network host
    --device /dev/davinci0
    --device /dev/davinci1
    --device /dev/davinci2
    --device /dev/davinci3
    --device /dev/davinci4
    --device /dev/davinci5
    --device /dev/davinci6
    --device /dev/davinci7
    --device /dev/davinci_manager
    --device /dev/devmm_svm
    --device /dev/hisi_hdc
    --privileged
    --ipc host
    --ulimit memlock=-1
    --mount type=bind,source=/usr/local/dcmi,target=/usr/local/dcmi,readonly
    --mount type=bind,source=/usr/local/Ascend/driver/tools/hccn_tool,target=/usr/local/Ascend/driver/tools/hccn_tool,readonly
    --mount type=bind,source=/usr/local/bin/npu-smi,target=/usr/local/bin/npu-smi,readonly
    --mount type=bind,source=/usr/local/Ascend/driver/lib64,target=/usr/local/Ascend/driver/lib64,readonly
    --mount type=bind,source=/usr/local/Ascend/driver/version.info,target=/usr/local/Ascend/driver/version.info,readonly
    --mount type=bind,source=/etc/ascend_install.info,target=/etc/ascend_install.info,readonly
    --mount type=bind,source=/etc/hccn.conf,target=/etc/hccn.conf,readonly
    --mount type=bind,source="${CACHE}",target=/root/.cache/huggingface
    # from the caller's environment, where it is set
    --env HF_TOKEN
    # collectives on the vector cores
    --env HCCL_OP_EXPANSION_MODE=AIV
    # this node's address
    --env HCCL_IF_IP="${THIS_IP}"
    # between the nodes
    --env HCCL_SOCKET_IFNAME=enp67s0f0np0
    quay.io/ascend/vllm-ascend:v0.18.0 vllm serve MiniMaxAI/MiniMax-M2.5
    # eight ranks
    --tensor-parallel-size 8
    # a replica of attention on each node
    --data-parallel-size 2
    # whole experts
    --enable-expert-parallel
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
    # one on each node
    --data-parallel-size-local 1
    # where node 0 is
    --data-parallel-address "${NODE0_IP}"
    # open it between the nodes
    --data-parallel-rpc-port 2347
    # the first rank of this node
    --data-parallel-start-rank 1
    # node 0 serves for all
    --headless
)

exec "${command[@]}"
