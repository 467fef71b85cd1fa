# `make demo` and `make test` set up everything they need in .venv; a second run reinstalls nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two cores are enough; more threads than cores make torch wait for itself.
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8))")
export TOKENIZERS_PARALLELISM ?= false

# Tests use one thread each (tests/conftest.py): one process for every core, within reason.
PARALLEL ?= --numprocesses auto --maxprocesses 8

.PHONY: help setup demo test test-all test-matrix package-check docs lint clean

help:
	@echo "make demo   a small model learns invented people and forgets some of them"
	@echo "make test   linter and tests"
	@echo "make test-all   tests that train for minutes too"
	@echo "make test-matrix   tests with the oldest and the newest versions that setup.cfg allows"
	@echo "make package-check   build the wheel, install it in a fresh environment, and use it there"
	@echo "make docs   the documentation as a site, in site/"
	@echo "make clean  remove the environment and what the demo wrote"

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "uld_hf needs Python 3.11 or newer (as transformers and trl do); $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/uld demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

# torch stays at the version of constraints.txt: another would be gigabytes, and is not what changes under us.
test-matrix: $(STAMP)
	set -e; for versions in oldest newest; do \
		environment=$(VENV)-$$versions; \
		$(PYTHON) -m venv $$environment; \
		$$environment/bin/python -m pip install --quiet --upgrade "$$(grep '^torch==' constraints.txt)" \
			$$($(BIN)/python tools/bounds.py $$versions) --editable ".[test]"; \
		$$environment/bin/python -m pip list | grep -E "^(torch|transformers|peft|trl|datasets|accelerate) "; \
		$$environment/bin/python -m pytest $(PARALLEL); \
	done

package-check: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd / && $(CURDIR)/build/fresh/bin/python -I $(CURDIR)/tools/smoke_test.py

# mkdocs-material tells at every build that mkdocs 2 will not run it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist site out uld-demo
