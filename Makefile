# The environment lives in .venv and is created on first use; a stamp file says which extras it holds.
VENV    := .venv
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PINS    := pyproject.toml constraints.txt
BASE    := $(VENV)/.installed
TRANSLATION := $(VENV)/.installed-translation
DEV     := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo demo-translation translation test test-all gpu lint format clean

help:  ## show this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BASE)  ## train the embedded default (ViT with UN on handwritten digits), installing what is missing
	$(BIN)/python train.py

demo-translation: $(TRANSLATION)  ## train a small translator with UN on generated sentences, installing what is missing
	$(BIN)/python train.py experiment=phrasebook_tiny

translation: $(TRANSLATION)  ## install what translation needs; compiling fairseq takes some minutes

test: $(DEV)  ## run the tests, installing what is missing
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-all: $(DEV)  ## run all tests, including the slow ones and those for a GPU
	$(BIN)/python -m pytest -m "slow or gpu or not slow"

gpu:  ## test and measure on an NVIDIA GPU in BUDGET=8 minutes, offline (scripts/gpu.sh prepare: docs/gpu.md)
	scripts/gpu.sh

lint: $(DEV)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy un

format: $(DEV)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environment and the caches, but no runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install CPython 3.11 or name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BASE): $(PINS) | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

# fairseq-fixed comes as source and does not declare what its build needs, so that is installed first.
$(TRANSLATION): $(PINS) | $(BASE)
	$(INSTALL) numpy cython ninja wheel setuptools
	$(INSTALL) --no-build-isolation --editable '.[translation]'
	@touch $@

$(DEV): $(PINS) $(TRANSLATION)
	$(INSTALL) --editable '.[dev,export]'
	@touch $(BASE) $(TRANSLATION) $@
