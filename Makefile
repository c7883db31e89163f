# Each target first creates .venv and installs the pinned packages, if necessary.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-fast faults fuzz coverage mutation check audit format docs wheel bench clean help

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

demo: $(INSTALLED)      ## all exercises, the expensive ones at quick size, with a report
	$(BIN)/tune-hpc run all --quick --output-dir runs/demo --overwrite

test: $(INSTALLED)      ## every test but the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: test          ## every test; the slow ones take minutes, or need Slurm, a browser, a full disk or S3
	$(BIN)/python -m pytest -n 2 -m slow

test-fast: $(INSTALLED) ## tests without Ray
	$(BIN)/python -m pytest -m "not ray and not slow"

faults: $(INSTALLED)    ## searches with a fault at each of their writes, and 200 at random moments; over an hour
	$(BIN)/python -m tests.faults.every_write
	$(BIN)/python -m tests.faults.harness --runs 200

fuzz: $(INSTALLED)      ## fuzz tests with many random examples; about ten minutes
	FUZZ_PROFILE=slow $(BIN)/python -m pytest tests/fuzz

coverage: export COVERAGE_FILE = $(CURDIR)/build/coverage/data
coverage: $(INSTALLED)  ## every test, with the coverage of all its processes
	rm -rf build/coverage && mkdir -p build/coverage
	printf 'import coverage\ncoverage.process_startup()\n' > build/coverage/sitecustomize.py
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml PYTHONPATH=$(CURDIR)/build/coverage $(BIN)/python -m pytest -n 2
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

mutation: $(INSTALLED)  ## mutation scores of statistics, spaces, schedulers and status, as a table; about an hour
	$(BIN)/python -m tests.mutation

check: $(INSTALLED)     ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)      ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel:          ## a wheel of the package, in dist/; needs only pip
	rm -rf build/lib
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

audit: $(INSTALLED)     ## known vulnerabilities of the pinned packages; needs the JSON API of pypi.org
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

format: $(INSTALLED)    ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)     ## benchmarks against other tools
	for question in overhead softmax_table exercise1 cnn_step recording loading fusion search_cost service; do $(BIN)/python benchmarks/$$question.py || exit 1; done

clean:          ## remove the virtual environment, not the results
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python is too old; version 3.11 or newer is required: make PYTHON=python3.12")'
	@echo "installing the tested versions into $(VENV) (6 GB, some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,examples]'
	@touch $@
