.DEFAULT_GOAL := help
.PHONY: help demo test test-slow faults bench lint types clean
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/n2n-installed

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(STAMP)  ## a whole growth study on embedded data and a CPU, in minutes: table, report, curves
	@$(BIN)/n2n compare baselines

test: $(STAMP)  ## every test but the slow ones
	@$(BIN)/pytest -n 2 -m 'not slow'

test-slow: $(STAMP)  ## the slow tests, an hour on 2 cores
	@$(BIN)/pytest -n 2 -m slow

faults: $(STAMP)  ## the fault matrix: every fault injected for real, three hours on 2 cores (as root: the full disk)
	@$(BIN)/python experiments/faults/faults.py --out experiments/faults

bench: $(STAMP)  ## images a second against torchvision's reference: make bench IMAGES=FOLDER
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/benchmarks/images.py $(IMAGES) --out experiments/benchmarks/images.csv

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	@$(BIN)/mypy n2n_cli

clean:  ## what builds and tests leave behind; runs/ and .venv/ stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find n2n_cli tests -name __pycache__ -prune -exec rm -rf {} +

# The environment, made again when what it holds changes.
$(STAMP): pyproject.toml constraints.txt
	@echo "making .venv (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "n2n needs Python 3.11 or newer: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
