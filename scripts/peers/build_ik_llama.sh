#!/usr/bin/env bash
# Build ik_llama.cpp for this CPU, as its documentation says. Needs cmake, ninja, a C++ compiler.
#
#   scripts/peers/build_ik_llama.sh [FOLDER]   (default: build/peers; binaries in FOLDER/ik_llama/bin)
#
# The sources are those that ik-llama-cpp-python 0.1.5 ships. IK_BIN names a build that exists.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/peers}
if [ -n "${IK_BIN:-}" ]; then
    "$IK_BIN/llama-bench" --help >/dev/null && exec echo "using $IK_BIN"
fi
sources=$(scripts/peers/fetch_sdist.sh ik-llama-cpp-python 0.1.5 \
    33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad "$folder")
tree=$sources/vendor/ik_llama.cpp

# The source distribution lacks this file, which only writes version strings.
mkdir -p "$tree/common/cmake"
cat >"$tree/common/cmake/build-info-gen-cpp.cmake" <<'CMAKE'
set(BUILD_NUMBER 0)
set(BUILD_COMMIT "sdist-0.1.5")
set(BUILD_COMPILER "unknown")
set(BUILD_TARGET "unknown")
configure_file("${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp.in" "${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp")
CMAKE
# Its batched-bench feeds token 0 everywhere, so that all sequences take the same eight experts;
# llama.cpp's draws its tokens, and so does ours.
sed -i 's/common_batch_add(batch, 0,/common_batch_add(batch, std::rand() % llama_n_vocab(model),/' \
    "$tree/examples/batched-bench/batched-bench.cpp"
grep -q 'std::rand() % llama_n_vocab(model)' "$tree/examples/batched-bench/batched-bench.cpp"
cmake -G Ninja -S "$tree" -B "$folder/ik_llama" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DGGML_IQK_FA_ALL_QUANTS=OFF -DLLAMA_BUILD_TESTS=OFF
ninja -C "$folder/ik_llama" llama-bench llama-batched-bench
