# The environment lives in .venv and is made on first use; a stamp file says which extras it holds.
VENV    := .venv
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PINS    := pyproject.toml constraints.txt
BASE    := $(VENV)/.installed
DEV     := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format clean

help:  ## show this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BASE)  ## train the embedded default (ViT with UN on handwritten digits), installing what is missing
	$(BIN)/python train.py

test: $(DEV)  ## run the tests, installing what is missing
	$(BIN)/python -m pytest

test-all: $(DEV)  ## run the tests, slow and gpu ones included
	$(BIN)/python -m pytest -m "slow or gpu or not slow"

lint: $(DEV)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy un

format: $(DEV)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment and the caches (runs are kept)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install CPython 3.11 or name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BASE): $(PINS) | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(DEV): $(PINS) | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	@touch $(BASE) $@
