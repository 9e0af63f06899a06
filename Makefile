# make install | demo | quick | test | vllm | fuzz | check | bench | wheel
#   PYTHON=python3.12        which Python the environment is made from (3.11 or newer)
#   PIP_ARGS="--index-url …" passed on to pip, for example to take torch's CPU build
#   ARGS="--seeds 0,1,2"     passed on to `accord demo`
#   TESTS="tests/test_x.py"  passed on to pytest
#   WORKERS=4                processes that share the tests; 0: this one alone, as a debugger needs it
#   ROUNDS=100               how often `make fuzz` draws new examples
#   ROWS=name,...            rows of `make bench` by name or its start; all by default
#   PEERS=folder             the peers' scripts for `make bench`
#   DIST=folder              where `make wheel` puts the wheel

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=
TESTS ?=
WORKERS ?= 2
ROUNDS ?= 10
ROWS ?=
PEERS ?= ../shared/peers
DIST ?= dist
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo quick test vllm fuzz check bench wheel clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("accord needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	@echo "installing into $(VENV): torch alone is 200 MB without CUDA and 3 GB with it"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt $(PIP_ARGS)
	@touch $@

demo: install
	$(BIN)/accord demo $(ARGS)

quick: install
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' $(TESTS)

test: install
	$(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

# Apart from `test`: each process of vLLM takes most of a minute to start.
vllm: install
	$(BIN)/accord doctor --vllm || $(BIN)/accord doctor --vllm --make
	ACCORD_VLLM="$${ACCORD_VLLM:-$$($(BIN)/python -c 'from accord.rollout.vllm_env import vllm_environment as v; print(v().folder)')}" \
	  $(BIN)/python -m pytest -m vllm tests/test_vllm.py

fuzz: install
	@for round in $$(seq $(ROUNDS)); do echo "round $$round of $(ROUNDS)"; \
	  ACCORD_HYPOTHESIS=fuzz $(BIN)/python -m pytest -n $(WORKERS) -m hypothesis $(TESTS) || exit 1; done

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks --rows '$(ROWS)' --peers '$(PEERS)' --pip-args '$(PIP_ARGS)' $(ARGS)

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(DIST) .

clean:
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
