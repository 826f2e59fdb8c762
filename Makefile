# Every target makes the virtual environment itself when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export OMP_NUM_THREADS ?= 1
# One constraints file pins the libraries and the build backend alike.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: run test lint format test-slow test-browser bench clean help

help:            ## Show the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "learned_opt needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(READY)    ## Train a small learned optimizer, race it, write the report (about 4 minutes)
	$(BIN)/learned-opt run --out runs/demo

test: lint       ## Formatting, lint, types, imports and the fast tests, a process for each core
	$(BIN)/pytest --numprocesses auto --dist loadfile

lint: $(READY)   ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-slow: $(READY)    ## The tests that take minutes
	$(BIN)/pytest -m slow

test-browser: $(READY) ## The report in headless Chromium (needs chromium and chromedriver)
	$(BIN)/pytest -m browser

bench: $(READY)  ## Speed, measured side by side
	$(BIN)/python benchmarks/engine_speed.py
	$(BIN)/python benchmarks/unroll_vs_higher.py
	$(BIN)/python benchmarks/environment_speed.py
	$(BIN)/python benchmarks/step_cost.py

clean:           ## Remove the environment and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
