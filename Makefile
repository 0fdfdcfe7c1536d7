# make demo    set up, then the whole story in a few minutes: generate, plan, train, segment, evaluate
# make test    set up, then the whole test suite, on 1, 2, 3, 4 and 8 ranks
# make lint    format, style, types, and which module may import which
#
# PYTHON=... names the Python (3.11 or newer) that .venv is made with. Nothing needs to be activated.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test lint format bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5

setup: $(INSTALLED)

# constraints.txt pins every version, torch above all: left free, pip may choose a CUDA build of several GB.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV): a minute or two, depending on the network"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,mpich]'
	@touch $@

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" sample_data/demo.sh

test: setup
	$(BIN)/python tests/run_suite.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@for program in benchmarks/*.py; do \
		echo "== $$program"; \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python $$program || exit 1; \
	done

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests sample_data benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
