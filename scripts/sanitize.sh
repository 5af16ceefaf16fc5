#!/usr/bin/env bash
# The CPU kernels under GCC's sanitizers: the pool's check under that of threads, then the kernels'
# tests under those of addresses and of undefined behaviour, on every instruction set this CPU has.
# Builds below build/; the installed library stays as it is.
#
#   PYTHON=.venv/bin/python scripts/sanitize.sh [pytest arguments]
#
# EMULATE_AVX512=ON runs the AVX-512 kernels in software: needs SIMDe's headers and much longer.
# ISAS="avx2" takes some of the instruction sets alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
emulate=${EMULATE_AVX512:-OFF}
build=$PWD/build/sanitize
if [ "$emulate" = ON ]; then build+=-avx512; fi
kernels=src/m2serve/kernels/cpu

PATH="$(dirname "$(command -v "$python")"):$PATH"
command -v cmake > /dev/null || "$python" -m pip install --quiet --disable-pip-version-check cmake
cmake -S . -B "$build" -DM2_SANITIZE=address,undefined -DM2_EMULATE_AVX512="$emulate"
cmake --build "$build" --parallel "${JOBS:-$(nproc)}"

g++ -std=c++20 -O1 -g -fsanitize=thread -pthread -I "$kernels" \
  tests/unit/kernels/pool_check.cpp "$kernels/pool.cpp" -o "$build/pool_check"
"$build/pool_check"

if [ $# = 0 ]; then
  # The pool's check has just run, compilers do not run under a sanitizer, and what it adds to the
  # library is not what ships.
  set -- --ignore tests/unit/kernels/test_kernels_cpu_pool.py \
    --ignore tests/unit/kernels/test_kernels_cpu_portable.py tests/unit/kernels \
    tests/unit/engine/test_engine_decode_ahead.py tests/parity/test_parity_cpu_*.py
fi
# Python is not built with the sanitizer, which therefore has to come first; with the C++ library,
# for it looks for that when it starts. What Python and PyTorch never free is not ours.
export M2_CPU_LIBRARY=$build/libm2cpu.so
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
for isa in ${ISAS:-amx avx512 avx2}; do
  if ! M2_CPU_ISA=$isa LD_PRELOAD=$preload "$python" -c \
    "from m2serve.kernels.cpu_library import *; load_cpu_library()" 2> /dev/null
  then echo "$isa: not on this machine"; continue; fi
  echo "$isa"
  M2_CPU_ISA=$isa LD_PRELOAD=$preload \
    "$python" -m pytest --timeout 1800 -p no:cacheprovider -m "not slow" "$@"
done
