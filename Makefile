# `make help` says what there is. Sources are listed nowhere: CMake finds them by name (cmake/rooms.cmake).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BUILD_DIR ?= build
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 600
comma := ,
export FIELDPRINT_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fieldprint
export FIELDPRINT_SMOLLM2_GGUF ?= $(FIELDPRINT_CACHE)/models/SmolLM2-135M-Instruct.Q4_1.gguf
export FIELDPRINT_GEMMA3_GGUF ?= $(FIELDPRINT_CACHE)/models/gemma-3-270m-q4_k_m.gguf
export BUILD_DIR
TOKEN_REFERENCE = $(FIELDPRINT_CACHE)/reference/tokens.txt

CXX_SOURCES = git ls-files -co --exclude-standard -- '*.h' '*.cc'

# $(call configure,DIRECTORY,OPTIONS): cmake in silence unless it fails; ccache where there is one.
define configure
launcher=$$(command -v ccache || true); log=$$(mktemp); \
cmake -S . -B $(1) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER_LAUNCHER=$$launcher \
  -DCMAKE_CXX_COMPILER_LAUNCHER=$$launcher $(2) >$$log 2>&1 || { cat $$log; rm -f $$log; exit 3; }; rm -f $$log
endef

.PHONY: help run test test-cuda build bench faults fuzz sanitize tidy format format-check clean

help: ## say what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

run: ## set up, build, and show the real thing with a real model
	@tools/setup --models smollm2
	@$(call configure,$(BUILD_DIR),)
	@cmake --build $(BUILD_DIR) -j $(JOBS) --target fieldprint
	@tools/demo

test: ## set up, build, and run all tests with both models
	@tools/setup --tests --models smollm2 gemma3 --reference
	@$(MAKE) build
	@if [[ -z $${FIELDPRINT_TOKEN_REFERENCE:-} && -f "$(TOKEN_REFERENCE)" ]]; then \
	    export FIELDPRINT_TOKEN_REFERENCE="$(TOKEN_REFERENCE)"; \
	  fi; \
	  ctest --test-dir $(BUILD_DIR) --output-on-failure -j $(JOBS)

build: ## build everything into build/
	@$(call configure,$(BUILD_DIR),)
	@cmake --build $(BUILD_DIR) -j $(JOBS)

test-cuda: ## run the backend, vector, model and engine tests with the GPU
	@$(call configure,$(BUILD_DIR),)
	@cmake --build $(BUILD_DIR) -j $(JOBS)
	@obstacle=$$($(BUILD_DIR)/fieldprint doctor --json | \
	    python3 -c 'import json, sys; print(json.load(sys.stdin)["backend_obstacles"].get("cuda", ""))'); \
	  if [[ -n $$obstacle ]]; then echo "no GPU tests were run: cuda $$obstacle"; exit 3; fi; \
	  FIELDPRINT_BACKEND=cuda ctest --test-dir $(BUILD_DIR) --output-on-failure -j 1 -R '^(backend|backend_cuda|vectors|model|engine|verify)$$'

bench: ## measure against llama.cpp, side by side in one run
	@tools/setup --models smollm2 --peers --corpus
	@$(MAKE) build
	@bench/run

faults: ## try every fault that can be injected; count what was detected and lost
	@tools/setup --tests
	@$(call configure,$(BUILD_DIR),)
	@cmake --build $(BUILD_DIR) -j $(JOBS) --target fieldprint crash_tool
	@FIELDPRINT_BINARY=$(BUILD_DIR)/fieldprint FIELDPRINT_CRASH_TOOL=$(BUILD_DIR)/tests/crash_tool tests/crash/faults.py

fuzz: ## run every fuzzer for FUZZ_SECONDS (600) each
	@tools/setup --dev
	@$(call configure,$(BUILD_DIR)-fuzz,-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
	  -DFIELDPRINT_FUZZ=ON -DFIELDPRINT_SANITIZE=address$(comma)undefined -DFIELDPRINT_TESTS=OFF -DFIELDPRINT_BENCH=OFF)
	@cmake --build $(BUILD_DIR)-fuzz -j $(JOBS)
	@tools/fuzz $(BUILD_DIR)-fuzz $(FUZZ_SECONDS)

# Gemma is left out: instrumented code is several times slower, and SmolLM2 takes the same paths of threads.
sanitize: ## run the tests under the address, undefined-behaviour and thread sanitizers
	@tools/setup --tests --models smollm2
	@for kind in address,undefined thread; do \
	  echo "sanitizers: $$kind"; \
	  $(call configure,$(BUILD_DIR)-$${kind%%$(comma)*},-DFIELDPRINT_SANITIZE=$$kind -DFIELDPRINT_BENCH=OFF \
	    -DFIELDPRINT_INVARIANCE=OFF); \
	  cmake --build $(BUILD_DIR)-$${kind%%,*} -j $(JOBS); \
	  env -u FIELDPRINT_GEMMA3_GGUF ctest --test-dir $(BUILD_DIR)-$${kind%%,*} --output-on-failure -j $(JOBS); \
	done

tidy: ## check style: format, tools/tidy, shellcheck, clang-tidy
	@tools/setup --dev
	@$(MAKE) format-check
	@tools/tidy
	@shellcheck tools/setup tools/demo tools/fuzz .ci/run
	@$(call configure,$(BUILD_DIR)-tidy,-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
	@$(CXX_SOURCES) | grep '\.cc$$' | grep -v '_fuzz\.cc$$' | \
	  xargs -r -n 4 -P $(JOBS) clang-tidy --quiet -p $(BUILD_DIR)-tidy --warnings-as-errors='*'

format: ## lay out all C++ files as .clang-format says
	@$(CXX_SOURCES) | xargs -r clang-format -i

format-check:
	@$(CXX_SOURCES) | xargs -r clang-format --dry-run --Werror

clean: ## remove all build directories; models and other fetched files stay in the cache
	@rm -rf $(BUILD_DIR) $(BUILD_DIR)-fuzz $(BUILD_DIR)-address $(BUILD_DIR)-thread $(BUILD_DIR)-tidy

