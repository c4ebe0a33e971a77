# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported: most of what comes with torch never is.
INSTALL = $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Material for MkDocs announces its successor at every build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-all docs clean bench-throughput bench-checkpoint bench-overlap bench-layouts bench-memory bench-network bench-gpu bench-quality bench-cooperate bench-faults bench-unequal bench-levels bench-auto

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/tutti train examples/demo.yaml

test: .venv/dev
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest -m 'not slow'

test-all: .venv/dev
	$(BIN)/pytest

.venv/bench: .venv/installed
	$(INSTALL) -e '.[bench]'
	touch $@

# Each of the next takes minutes on a quiet machine; results are written to benchmarks/*/results/.
bench-throughput: .venv/bench
	$(BIN)/python -m benchmarks.throughput.run

bench-checkpoint: .venv/installed
	$(BIN)/python -m benchmarks.checkpoint.run

bench-overlap: .venv/installed
	$(BIN)/python -m benchmarks.overlap.run

bench-layouts: .venv/installed
	$(BIN)/python -m benchmarks.layouts.run

bench-memory: .venv/installed
	$(BIN)/python -m benchmarks.memory.run

# Hours, as root; what was interrupted goes on. MINUTES: stop after so many and report what there is.
bench-network: .venv/installed
	$(BIN)/python -m benchmarks.network.run $(if $(MINUTES),--minutes $(MINUTES))

bench-faults: .venv/installed
	$(BIN)/python -m benchmarks.faults.run

bench-unequal: .venv/installed
	$(BIN)/python -m benchmarks.unequal.run

bench-levels: .venv/installed
	$(BIN)/python -m benchmarks.levels.run

bench-auto: .venv/installed
	$(BIN)/python -m benchmarks.auto.run

bench-gpu: .venv/installed
	$(BIN)/python -m benchmarks.gpu.run

# TEXT: the file to learn; CORE: the core that both sides are held to.
bench-quality: .venv/installed
	@test -n "$(TEXT)" || { echo "say which text: make bench-quality TEXT=input.txt"; exit 2; }
	$(BIN)/python -m benchmarks.time_to_quality.run --text $(TEXT) $(if $(CORE),--core $(CORE))

bench-cooperate: .venv/installed
	@test -n "$(TEXT)" || { echo "say which text: make bench-cooperate TEXT=input.txt"; exit 2; }
	$(BIN)/python -m benchmarks.cooperate.run --text $(TEXT)

docs: .venv/dev
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv site runs/demo
