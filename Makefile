# Two commands on a fresh machine: `make run` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export GOMP_SPINCOUNT ?= 20000
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup run test test-long test-cpus check demo bench gpu-check test-unsloth resolve-gpu soak clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch triton
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

# What the page needs and no more.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch triton
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "prism_lite needs Python 3.11 or newer; set PYTHON=python3.11 (found: $$($(PYTHON) --version))"; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "python3 -m venv failed; on Debian or Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 2; }

run: setup
	$(BIN)/prism-lite run --recipe tiny

# Two processes of one thread each: on two cores half the time of one process of two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST) -m "not long"

# Plans of every recipe at full size, and gpu-check on the CPU: about fifteen minutes.
test-long: setup
	$(PYTEST) -m long

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(PYTEST) -m "not long"

# The numerical tests with the vector instructions of other CPUs (default, AVX2, AVX-512), each with one
# thread and with two; about 15 minutes.
test-cpus: setup
	$(BIN)/python -m tests.cpus

# Kills micro runs 200 times and compares what they end with; about half an hour. KILLS=50 for fewer.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --kills $(or $(KILLS),200)

demo: $(VENV)/.demo
	$(BIN)/prism-lite demo

bench: setup
	$(BIN)/python -m tests.bench

# On a machine with an NVIDIA card, in two parts of six minutes: its tests, kernels, all stages of the micro
# model, and a step of every stage of Qwen3-VL at full size with random weights. Writes a JSON file.
# RECIPE=t4-2b measures that recipe's size alone. Without network: python -m tests.gpu_check --random
gpu-check: setup
	$(BIN)/python -m tests.gpu_check --random $(if $(RECIPE),--recipe $(RECIPE))

# The real Unsloth on the CPU, in an environment of its own (about 2.6 GB).
UNSLOTH_VENV := .venv-unsloth
UNSLOTH_BIN := $(UNSLOTH_VENV)/bin
UNSLOTH_SET := --constraint tests/real_unsloth/constraints.txt
test-unsloth: $(UNSLOTH_VENV)/.installed
	PYTHONPATH=$(CURDIR) $(UNSLOTH_BIN)/pytest tests/real_unsloth tests/unit/models/test_backend.py

$(UNSLOTH_VENV)/.installed: tests/real_unsloth/constraints.txt
	test -x $(UNSLOTH_BIN)/pip || $(PYTHON) -m venv $(UNSLOTH_VENV)
	$(UNSLOTH_BIN)/pip install --quiet $(UNSLOTH_SET) torch triton
	$(UNSLOTH_BIN)/pip install --quiet $(UNSLOTH_SET) --requirement tests/real_unsloth/requirements.txt
	$(UNSLOTH_BIN)/pip install --quiet $(UNSLOTH_SET) --no-deps unsloth unsloth_zoo
	@touch $@

# Asks pip whether the GPU set resolves today; installs nothing.
resolve-gpu: setup
	$(BIN)/python -m tests.resolve_gpu

clean:
	rm -rf $(VENV) $(UNSLOTH_VENV) build dist *.egg-info
