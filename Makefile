# Two commands: `make phenomena` (train, measure, judge) and `make test` (the fast suite).
# PYTEST_ARGS adds options, e.g. make phenomena PYTEST_ARGS="-k llfc -n 2".
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=

.PHONY: phenomena test slurm-test mutations bench lint clean

phenomena: .venv/installed
	$(BIN)/python -m pytest phenomena/ -n auto --maxprocesses 8 --llfc-report llfc-report $(PYTEST_ARGS)

test: .venv/installed lint
	$(BIN)/python -m pytest tests/ -m "not slow" -n auto $(PYTEST_ARGS)

# On a Slurm of its own; skipped, with the reason, where none can be started. Minutes.
slurm-test: .venv/installed
	$(BIN)/python -m pytest tests/cluster -m slurm -v -rs $(PYTEST_ARGS)

# Breaks the code one line at a time: some test must notice each.
mutations: .venv/installed
	$(BIN)/python -m pytest tests/mutations -m slow -n auto $(PYTEST_ARGS)

# bench.json and a page of it; minutes.
bench: .venv/installed
	$(BIN)/python -m pytest benchmarks/ -m "not slow" --benchmark-json bench.json $(PYTEST_ARGS)
	$(BIN)/python benchmarks/page.py bench.json bench.html

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info llfc-report bench.json bench.html
