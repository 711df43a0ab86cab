# Every target works by itself on a fresh clone: it first makes the environment in .venv if it is not there.
#
#   make setup PYTHON=/path/to/python3.12                  another interpreter (3.11 or newer)
#   make setup PLAIT_VENV_FLAGS=--system-site-packages     keep the machine's own torch (2.11 or newer), as on GPU images
#   make test WORKERS=8                                    more test processes
#   make setup PLAIT_TORCH="torch --index-url https://download.pytorch.org/whl/cpu"   a build without CUDA

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
VENV ?= .venv
PLAIT_VENV_FLAGS ?=
PLAIT_TORCH ?= torch==2.13.0
WORKERS ?= 2
GPU_WORKERS ?= 8

BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo test test-all sanitize check fla-peer tools bench docs gpu package environments clean
.DEFAULT_GOAL := help

help:
	@echo "setup     the environment in $(VENV), with all that the tests need"
	@echo "demo      a small study, trained and reported: about 5 minutes on 2 cores"
	@echo "test      the tests; test-all adds the slow ones"
	@echo "sanitize  the CPU kernels under gcc's address and undefined-behaviour sanitizers: random calls, kernel tests"
	@echo "check     formatting, lint, types"
	@echo "fla-peer  whole models beside those of flash-linear-attention, on a CPU"
	@echo "tools     models under TRL, torchao and bitsandbytes, which are installed for it"
	@echo "bench     operations timed against named peers"
	@echo "docs      build the documentation and run its examples"
	@echo "gpu       tests and timings that need a CUDA device"
	@echo "package   build wheel and sdist, and try each in a fresh environment"
	@echo "environments  the tests with the registry's default, the oldest and the newest torch and transformers"
	@echo "clean     remove caches and built files; $(VENV) and runs stay"

setup: $(READY)

# torch comes first and alone: nothing may pull another build of it.
$(READY): pyproject.toml hatch_build.py $(wildcard src/plait/ops/native/*.[ch] src/plait/ops/native/build.py)
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "plait needs Python 3.11 or newer, and '$(PYTHON)' is not. Install one, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(PLAIT_VENV_FLAGS) $(VENV)
	$(BIN)/python .ci/has_torch.py || $(BIN)/python -m pip install --quiet $(PLAIT_TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

demo: $(READY)
	$(BIN)/plait study run studies/demo.yaml
	@echo "The report is runs/demo/report.html"

test: $(READY)
	@.ci/browser
	$(PYTEST) -m "not slow and not gpu"

test-all: $(READY)
	@.ci/browser
	$(PYTEST) -m "not gpu"

# The kernels alone are instrumented: leaks of the interpreter are not looked for, and a kernel that reads or writes
# outside a tensor ends the process.
SANITIZED := build/sanitized
SANITIZERS = PLAIT_KERNELS=$(SANITIZED) OMP_NUM_THREADS=1 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
SANITIZED_CALLS ?= 10000

sanitize: $(READY)
	mkdir -p $(SANITIZED)
	CC=gcc PLAIT_CFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
		PLAIT_KERNELS=$(SANITIZED) $(BIN)/python -m plait.ops.native.build
	$(SANITIZERS) $(BIN)/python -W ignore tests/ops/fuzz.py 0 $(SANITIZED_CALLS)
	$(SANITIZERS) $(BIN)/python -W ignore tests/ops/fuzz.py 0 1000 --level DEFAULT
	$(SANITIZERS) $(BIN)/pytest -n0 tests/ops/test_native.py tests/ops/test_softmax.py tests/ops/test_checks.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

fla-peer: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps "flash-linear-attention>=0.6" "fla-core>=0.6" einops triton
	$(PYTEST) tests/models/checkpoints/test_fla_peer.py

tools: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps "trl>=1.16" "torchao>=0.18" "bitsandbytes>=0.50"
	$(PYTEST) tests/models/test_trl.py tests/models/test_quantised.py

bench: $(READY)
	$(BIN)/plait bench ops

docs: $(DOCS_READY)
	$(BIN)/pytest tests/test_documentation.py
	$(BIN)/sphinx-build -W --keep-going -q docs site
	@echo "The documentation is site/index.html"

gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu needs a CUDA device: torch " + torch.__version__ + " sees none here. On a GPU image, set up with: make setup PLAIT_VENV_FLAGS=--system-site-packages")'
	@$(BIN)/python -c 'import torch, triton, fla; print("torch", torch.__version__, "triton", triton.__version__, "fla", fla.__version__, torch.cuda.get_device_name())'
	$(BIN)/pytest -n $(GPU_WORKERS) --dist loadgroup -m gpu tests/gpu tests/timing
	$(BIN)/plait bench ops --device cuda --shape B1-T4096-H8-D128
	$(BIN)/plait bench ops --device cuda --shape B1-T16384-H8-D128 --operation delta_rule --operation linear_attention
	$(BIN)/plait bench layers --device cuda
	$(BIN)/plait study run studies/demo.yaml --out runs/demo-gpu --workers $(GPU_WORKERS)

package:
	PYTHON=$(PYTHON) PLAIT_TORCH="$(PLAIT_TORCH)" WORKERS=$(WORKERS) .ci/package

environments:
	@.ci/browser
	for name in default oldest newest; do WORKERS=$(WORKERS) .ci/environment $$name || exit 1; done

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
