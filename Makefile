# Each target makes .venv and installs the pinned packages first, if that is not done yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-fast check format bench clean help

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

demo: $(INSTALLED)      ## all exercises at quick size, with a report
	$(BIN)/tune-hpc run all --quick --output-dir runs/demo --overwrite

test: $(INSTALLED)      ## every test
	$(BIN)/python -m pytest -n 2

test-fast: $(INSTALLED) ## the tests that need no Ray
	$(BIN)/python -m pytest -m "not ray and not slow"

check: $(INSTALLED)     ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)    ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)     ## measurements against other ways to do the same
	for question in overhead softmax_table exercise1 cnn_step recording loading fusion search_cost service; do $(BIN)/python benchmarks/$$question.py || exit 1; done

clean:          ## remove the virtual environment; results stay
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with PYTHON=python3.12")'
	@echo "installing the tested versions into $(VENV): about 6 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
