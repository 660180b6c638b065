# make quickstart   one label with and without unlabeled images, on the small data set in examples/, in minutes on two
#                   CPU cores
# make test         ruff, mypy, import-linter, the documentation and all tests but the slow ones; make test-all runs
#                   those too
# make docs         build the documentation into site/, and fail on a dead link
# make dist         build the sdist and the wheel into dist/, and check that the package index would take them
# make clean        remove everything that the targets above made
# The environment lies in .venv; another interpreter for it: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-all lint docs dist clean

quickstart: $(INSTALLED)
	$(BIN)/python examples/quickstart.py

# One worker for each core, each with one thread: more threads would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

test: lint docs
	$(PYTEST) -m "not slow"

test-all: lint docs
	$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --clean
	@echo "Open site/index.html; with search: $(BIN)/python -m http.server -d site"

dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes minutes."
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) quickstart tutorial site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
