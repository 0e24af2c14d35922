# Every target does its own set-up. A fresh clone needs make and Python 3.11 or newer, nothing else.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each worker computes on one thread: two workers with a thread pool each are slower on two cores than one.
# Byte code is kept: many tests start programs.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint format types house docs generated clean

help:
	@echo "make demo    train masked Flow-DPO on the embedded digits and print the before/after table"
	@echo "make test    lint, type checks, the docs and the whole test suite"
	@echo "make quick   the tests that are not marked slow"
	@echo "make lint    ruff check and format check"
	@echo "make format  let ruff rewrite the sources"
	@echo "make types   mypy"
	@echo "make house   lines, files, circles between rooms, what a new hook costs"
	@echo "make docs    the site of the docs, into build/site; its links are followed"
	@echo "make generated  write the schemas and the tables of the docs anew from the specs"
	@echo "make clean   remove the virtual environment, build products and tool caches"

demo: $(STAMP)
	$(BIN)/flowhooks demo

# pytest comes last so that its closing line is the last thing printed.
test: lint types house docs
	$(PYTEST)

quick: $(STAMP)
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

house: $(STAMP)
	$(BIN)/python -m benchmarks.house

docs: $(STAMP)
	$(BIN)/python -m tests.docs.site

# The stamp is written last: an interrupted install is taken up again by the next call.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flowhooks needs Python 3.11 or newer, this is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

generated: $(STAMP)
	$(BIN)/flowhooks schema --write schemas --force
	$(BIN)/python -m tests.docs.tables

clean:
	rm -rf $(VENV) build dist flowhooks.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
