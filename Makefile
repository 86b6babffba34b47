# make demo       installs the environment, runs the demo and opens the dashboard (APP=0 skips the dashboard)
# make app        opens the dashboard
# make test       installs the test environment, then runs ruff, basedpyright and all tests
# make lint       runs only ruff and basedpyright
# make fuzz       tries many more mutated files than the tests do (EXAMPLES=20000 of each kind)
# make faults     tries every fault of docs/reliability.md, and prints that table with what was tried and held
# make docs       builds the manual and the API reference as web pages in build/site
# make notebooks  runs all notebooks and stores their outputs
# make bench      runs all benchmarks and writes benchmarks/results
# make evidence   trains the runs of the published tables and writes docs/results
# make gpu-bundle packs what a GPU machine without a network needs into build/gpu-bundle.tar.gz (bash gpu/check.sh there)
# make clean      removes .venv, caches and build outputs
# PYTHON=...      selects the Python (3.11 or 3.12); TORCH=2.11.0 selects the version of torch
.PHONY: help demo app test lint fuzz faults docs notebooks bench evidence gpu-bundle environment environment-all browser clean
.DEFAULT_GOAL := help

APP ?= 1
EXAMPLES ?= 20000
# A name on PATH may be a shim that does not start, so each candidate must report its version.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && command -v "$$p" && break; done)
BIN := .venv/bin
export TORCH

help:
	@sed -n '/^# make/p; /^# PYTHON/p' Makefile | cut -c 3-

environment environment-all:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed, but none was found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" tools/environment.py $(if $(filter environment-all,$@),all,app)

browser: environment-all
	@$(BIN)/python tools/browser.py

demo: environment
	$(BIN)/workbench demo $(if $(filter 0,$(APP)),--no-app)

app: environment
	$(BIN)/workbench app

lint: environment-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# All checks run even if one fails, so that one round shows everything. pytest is last, so that the output ends with its summary.
test: environment-all browser
	@status=0; \
	echo "[test] ruff"; $(BIN)/ruff check . || status=1; $(BIN)/ruff format --check . || status=1; \
	echo "[test] basedpyright"; $(BIN)/basedpyright --pythonpath $(BIN)/python || status=1; \
	echo "[test] pytest"; $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST) || status=1; \
	exit $$status

fuzz: environment-all
	WORKBENCH_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -n 2 tests/faults/test_input.py -k mutated --timeout 7200

faults: environment-all browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -p tests.faults.counting tests/faults tests/services tests/views

docs: environment-all
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: environment-all browser
	$(BIN)/python -m notebooks.build

bench: environment-all
	$(BIN)/python -m benchmarks all

evidence: environment-all
	$(BIN)/python -m benchmarks.evidence

# pip of the machine's Python fetches the wheels, because the environment has no pip
gpu-bundle: environment-all
	PYTHON="$(PYTHON)" $(BIN)/python -m gpu.bundle

clean:
	rm -rf .venv .venv-tools .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
