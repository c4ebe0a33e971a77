# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Material for MkDocs announces its successor at every build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-all docs clean bench-throughput bench-checkpoint bench-overlap

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/ready
	rm -rf runs/demo
	$(BIN)/tutti train examples/demo.yaml

test: .venv/ready
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest -m 'not slow'

test-all: .venv/ready
	$(BIN)/pytest

.venv/bench: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

# Each of the next takes minutes on a quiet machine; results are written to benchmarks/*/results/.
bench-throughput: .venv/bench
	$(BIN)/python -m benchmarks.throughput.run

bench-checkpoint: .venv/ready
	$(BIN)/python -m benchmarks.checkpoint.run

bench-overlap: .venv/ready
	$(BIN)/python -m benchmarks.overlap.run

docs: .venv/ready
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv site runs/demo
