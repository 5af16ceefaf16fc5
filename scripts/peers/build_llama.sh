#!/usr/bin/env bash
# Build llama.cpp for this CPU, as its documentation says. Needs cmake, ninja and a C++ compiler.
#
#   scripts/peers/build_llama.sh [FOLDER]      (default: build/peers; binaries in FOLDER/llama/bin)
#
# The sources are those that llama-cpp-python 0.3.36 ships. LLAMA_BIN names a build that exists.
# LLAMA_AMX=off leaves AMX tiles out and keeps the rest of the CPU: with them its products of
# quantised weights have been seen to crash (its issue 20824 is one such report).
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/peers}
if [ -n "${LLAMA_BIN:-}" ]; then
    "$LLAMA_BIN/llama-bench" --help >/dev/null && exec echo "using $LLAMA_BIN"
fi
sources=$(scripts/peers/fetch_sdist.sh llama-cpp-python 0.3.36 \
    832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e "$folder")
flags=
if [ "${LLAMA_AMX:-on}" = off ]; then flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; fi
cmake -G Ninja -S "$sources/vendor/llama.cpp" -B "$folder/llama" -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    "-DCMAKE_C_FLAGS=$flags" "-DCMAKE_CXX_FLAGS=$flags"
ninja -C "$folder/llama" llama-bench llama-batched-bench llama-server llama-quantize
