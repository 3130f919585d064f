# Every task of a developer's day. `make` lists them; the virtual environment in .venv is made when first needed.

PYTHON ?= python3
TORCH_INDEX ?=
EXTRAS ?=
DATA ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Opening a text file without naming its encoding fails a test (pyproject.toml, filterwarnings), not a program it starts.
ENCODING := PYTHONWARNDEFAULTENCODING=1 PYTHONWARNINGS=ignore::EncodingWarning
TEST := OMP_NUM_THREADS=1 $(ENCODING) $(BIN)/python -m pytest --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench bundle clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.complete ## Make .venv (TORCH_INDEX=https://download.pytorch.org/whl/cpu picks another torch)
	@:

.venv/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "weightclass needs Python 3.11 or newer: name one, for example make setup PYTHON=python3.12"; exit 1; }
	@echo "Installing weightclass into .venv (a minute, most of it torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -z "$(TORCH_INDEX)" || $(PIP) --no-deps --index-url "$(TORCH_INDEX)" torch
	@$(PIP) --editable .
	@touch $@

.venv/.complete: .venv/.core
	@echo "Installing its tools and the runtimes of exported files (another minute)"
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: .venv/.core ## Train a first classifier: offline, a few seconds
	@$(BIN)/weightclass train quickstart

check: setup ## Lint, formatting, types, dependencies
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/pyright
	@$(BIN)/deptry weightclass

test: check ## Check, then the fast tests
	@$(TEST) -n 2

test-slow: setup ## The tests that take longer (real data through WEIGHTCLASS_DATA)
	@$(TEST) -m slow || test $$? -eq 5 # 5: there are none

bench: setup ## Run every benchmark
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

bundle: setup ## Pack all for a machine without internet (docs/offline.md; EXTRAS=dev, DATA=no)
	@$(BIN)/python -m tools.bundle --extras "$(EXTRAS)" --torch-index "$(TORCH_INDEX)" $(if $(filter no,$(DATA)),--no-data)

clean: ## Remove caches and build output; .venv and runs stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
