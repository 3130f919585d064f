# Every task of a developer's day. `make` lists them; the virtual environment in .venv is made when first needed.

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.complete ## Make .venv (TORCH_INDEX=https://download.pytorch.org/whl/cpu picks another torch)
	@:

.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "weightclass needs Python 3.11 or newer: name one, for example make setup PYTHON=python3.12"; exit 1; }
	@echo "Installing weightclass and its tools into .venv (a minute or two, most of it torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -z "$(TORCH_INDEX)" || $(PIP) --no-deps --index-url "$(TORCH_INDEX)" torch
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: setup ## Train a first classifier: offline, a few seconds
	@$(BIN)/weightclass train quickstart

check: setup ## Lint, formatting, types, dependencies
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/pyright
	@$(BIN)/deptry weightclass

test: check ## Check, then the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n 2

test-slow: setup ## The tests that take longer (real data through WEIGHTCLASS_DATA)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -m slow || test $$? -eq 5 # 5: there are none

bench: setup ## Run every benchmark
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean: ## Remove caches and build output; .venv and runs stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
