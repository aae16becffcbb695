# Two commands are enough: `make demo` shows what this is, `make test` says whether it still holds.
# Both build the environment (.venv) when it is missing or out of date; only Python >= 3.11 and make are needed before.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-by-make
EXTRAS := cli,data,plots,test
# One worker a core, at most 2, and a file of tests to one worker: JAX itself is threaded, and a second worker on the same
# file only compiles the same functions again.
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); [ $$n -lt 2 ] && echo 0 || echo 2)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all lint types imports format bench doctor clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  options:  PYTHON=python3.12 (interpreter for a new .venv)   ARGS="-k wrmf" (passed to pytest, the demo or the benchmark)'

env: $(STAMP) ## build .venv if it is missing or out of date

# constraints.txt has the versions of the published results, resolved on Python 3.11; a newer Python resolves a newer JAX.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make env: Python 3.11 or newer is needed, but PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Install one, or name one you have: make env PYTHON=python3.12" >&2; exit 1; }; \
	  echo "make env: creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "make env: installing bilevel[$(EXTRAS)] into $(VENV) (one to five minutes the first time)"
	@pin=$$($(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")') && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $$pin --editable '.[$(EXTRAS)]'
	@touch $@

demo: env ## RevAdv on the paper's toy data: no download, under 3 minutes
	$(BIN)/python scripts/demo.py $(ARGS)

test: env lint types imports ## environment, lint, types, import contracts, doctests, tests
	$(PYTEST) $(ARGS)

test-all: env lint types imports ## test, and the long property and fault-injection runs
	$(PYTEST) -m "" --hypothesis-profile=slow $(ARGS)

lint: env ## ruff: rules and formatting, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env ## pyright
	$(BIN)/pyright

imports: env ## import contracts: imports point one way
	$(BIN)/lint-imports --no-logo

format: env ## ruff: format and fix in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env ## time and memory of every estimator, as ratios to the forward run
	$(BIN)/python benchmarks/hypergradient.py $(ARGS)

doctor: env ## what is installed, what JAX sees, where the data is
	$(BIN)/python scripts/doctor.py

clean: ## remove caches and build products (results and .venv stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
