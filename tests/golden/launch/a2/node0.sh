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

# Settings of the host; the engine starts without them, slower.
as_root() {
    if [ "$(id -u)" = 0 ]; then sh -c "$1"; else sudo sh -c "$1"; fi || echo "not done: $1" >&2
}
# pinned memory stays
as_root 'sysctl -w vm.swappiness=0'
# cores at full clock
as_root 'echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor'

# collectives on the vector cores
export HCCL_OP_EXPANSION_MODE=AIV
# this node's address
export HCCL_IF_IP="${THIS_IP}"
# between the nodes
export HCCL_SOCKET_IFNAME=enp67s0f0np0

command=(
    vllm serve MiniMaxAI/MiniMax-M2.5
    # clients of this machine alone
    --host 127.0.0.1
    # HTTP, with /health and /metrics
    --port 8000
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
    --data-parallel-start-rank 0
)

exec "${command[@]}"
