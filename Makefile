# Every target works from a fresh clone; what it needs is installed into .venv once, and again when a dependency changes.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: .venv demo test quick bench lint clean

demo: .venv/demo.stamp
	$(BIN)/shapleycam explain src/shapleycam/data/cat.jpg src/shapleycam/data/coffee.jpg \
		--model efficientnet_lite0 --methods paper --out out/demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

quick: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not large"

bench: .venv/dev.stamp
	$(BIN)/python -m benchmarks.heatmap

lint: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The environment stays: it is large, and `rm -rf .venv` is as short.
clean:
	rm -rf out build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv: .venv/dev.stamp

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shapleycam needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv; the first time this takes some minutes."
	$(INSTALL) ".[demo,bench,web]"
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv; the first time this takes some minutes."
	$(INSTALL) ".[dev]"
	@touch $@
