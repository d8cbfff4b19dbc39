# make help says what there is. Nothing here needs more than python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# xformers is not among them: it brings a CUDA build of its own.
EXTRAS ?= modal,object,docs,dev
# The first pip call installs torch alone. For a CPU-only build from PyTorch's own index:
#   make venv TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
# Test processes at a time. Each one imports torch: count about 1 GB of memory for each.
WORKERS ?= auto
PYTEST_ARGS ?=
# What `make ranges` tries, of lowest, newest, pinned and laptop; tests/ranges.py says what each one is.
ROUNDS ?= lowest newest laptop
# Where `make bench` makes its source: name a folder on the disk to measure.
BENCH_FOLDER ?= build/bench
STAMP := $(VENV)/.installed

# $(call retry,COMMAND): an index may hiccup; try three times before giving up.
retry = for attempt in 1 2 3; do \
		if $(1); then exit 0; fi; \
		echo "attempt $$attempt of 3 failed: $(firstword $(1))" >&2; sleep $$((attempt * 5)); \
	done; exit 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-faults ranges lint format docs wheel bench bench-loading bench-memory bench-presets clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create .venv and install everything into it, once

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"wanstore needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; name another: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(call retry,$(BIN)/python -m pip install --disable-pip-version-check $(TORCH_ARGS) "$(TORCH)")
	@$(call retry,$(BIN)/python -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]" -c constraints.txt)
	@touch $@

demo: venv ## Set up, verify, load and run a tiny Wan 2.1 with random weights, on a CPU
	$(BIN)/wanstore demo

test: lint ## Lint, type check, tests
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-faults: venv ## Kill, break, race and flip everything that can be, and count (under 30 minutes)
	$(BIN)/python -m tests.faults --long --out build/faults.json

ranges: ## The lowest and the newest dependencies, and none of torch, each in an environment below build/ (12 minutes)
	$(PYTHON) -m tests.ranges $(ROUNDS) --torch-args="$(TORCH_ARGS)" --workers $(WORKERS)

lint: venv ## Ruff and mypy, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy

format: venv ## Format, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: venv ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: venv ## Build the wheel into build/wheel/, and run the demo from it
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel/installed build/wheel/*.whl
	cd build/wheel && PYTHONPATH=installed $(abspath $(BIN))/python -m wanstore demo

bench: venv ## Conversion against its peers (minutes, about 25 GB of disk)
	$(BIN)/python benchmarks/conversion.py $(BENCH_FOLDER)

bench-loading: venv ## Loading against its peers, on a GPU (minutes, about 30 GB of disk)
	@test -e $(BENCH_FOLDER)/float16/wanstore.json || $(BIN)/python benchmarks/full_size.py $(BENCH_FOLDER)/float16 --dtype float16
	$(BIN)/python benchmarks/loading.py $(BENCH_FOLDER)/float16 --cold --out $(BENCH_FOLDER)/loading.json

bench-memory: venv ## Memory plans beside diffusers' own offloading, on a GPU (minutes)
	@test -e $(BENCH_FOLDER)/float16/wanstore.json || $(BIN)/python benchmarks/full_size.py $(BENCH_FOLDER)/float16 --dtype float16
	$(BIN)/python benchmarks/memory.py $(BENCH_FOLDER)/float16 --out $(BENCH_FOLDER)/memory.json

bench-presets: venv ## A tiny clip, measured and not, by pytest-benchmark (a minute)
	@mkdir -p build
	$(BIN)/python -m pytest benchmarks/test_presets.py -m "" --benchmark-json build/presets.json

clean: ## Remove what was built, and the caches; .venv stays
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find wanstore tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
