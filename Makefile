# All targets do their own set-up; they need only Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An environment belongs to one Python: another PYTHON rebuilds it.
VERSION := $(shell $(PYTHON) -c "import platform, sys; print(platform.python_version() + sys.abiflags)")
STAMP := $(VENV)/.installed-$(VERSION)
# Packages that draw, profile or are only measured are kept apart: tests and Givalia do not need them.
DRAW := build/bench-venv
DRAW_STAMP := $(DRAW)/.installed
SOURCES := pyproject.toml requirements.lock $(wildcard plugins/*/pyproject.toml) example_modules_pkg/pyproject.toml

.PHONY: help demo test test-all unit lint format lock bench bench-ten-million bench-peers bench-compare flames clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# First the locked dependencies, each with its hash; then our own packages, which need nothing more.
$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-e . $(addprefix -e ,$(wildcard plugins/*)) -e example_modules_pkg
	@touch $(STAMP)

demo: $(STAMP)  ## Show it at work: a job pushed back, one called off, the server killed under the rest
	@$(BIN)/givalia demo

test: $(STAMP)  ## Every test, in parallel parts
	$(BIN)/python tests/parts.py

# Tests that take too long for each change: every place at which a system call can fail, a thousand interrupted calls for each
# verb, and two thousand damages.
test-all: $(STAMP)  ## Every test and the exhaustive ones; as root also full file systems; the fast ones on each Python
	status=0; GIVALIA_EACH=1 GIVALIA_CUTS=1000 GIVALIA_DAMAGES=2000 GIVALIA_IMAGES=5000 GIVALIA_FULL_S=150 GIVALIA_END_S=5400 \
	$(BIN)/python tests/parts.py || status=1; $(BIN)/python tests/pythons.py || status=1; exit $$status

unit: $(STAMP)  ## The fast tests
	$(BIN)/python -m pytest tests/unit tests/contract plugins example_modules_pkg

lint: $(STAMP)  ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# If a goal is missed, the plots are drawn anyway, and then make fails.
bench: $(STAMP) $(DRAW_STAMP)  ## The figures of the README and of docs/benchmarks.md
	status=0; $(BIN)/python benchmarks/run.py --json build/bench.json || status=$$?; \
	$(DRAW)/bin/python benchmarks/plot.py build build/bench.json; exit $$status

bench-ten-million: $(STAMP) $(DRAW_STAMP)  ## The figures with ten million jobs waiting; takes a while
	status=0; $(BIN)/python benchmarks/run.py --ten-million --json build/bench-ten-million.json || status=$$?; \
	$(DRAW)/bin/python benchmarks/plot.py build build/bench.json build/bench-ten-million.json; exit $$status

# For one kind of load: make bench-compare BASE=HEAD~3 COMPARE="--kinds singles --restarts 24".
bench-compare: $(STAMP)  ## Compare the cost of jobs with that of the commit BASE
	$(BIN)/python benchmarks/compare.py --base $(BASE) $(COMPARE)

flames: $(STAMP) $(DRAW_STAMP)  ## Flame graphs of server, worker and client under load
	$(BIN)/python benchmarks/flames.py

$(DRAW_STAMP): benchmarks/requirements.lock
	$(PYTHON) -m venv $(DRAW)
	$(DRAW)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	@touch $(DRAW_STAMP)

# It installs the peers by itself, into build/peers. For a quick run: make bench-peers PEERS="--scale 0.1 --repeats 1"; with ten
# million jobs waiting: make bench-peers PEERS=--ten-million.
bench-peers: $(STAMP) $(DRAW_STAMP)  ## Givalia beside other job servers and queues, and every goal, in one run
	status=0; PYTHONPATH=benchmarks $(BIN)/python -m peers $(PEERS) || status=$$?; \
	$(DRAW)/bin/python benchmarks/plot.py build build/bench-peers.json; exit $$status

lock:  ## Pin every dependency again, with hashes and without naming an index
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --group dev -o requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --group image -c requirements.lock -o deploy/requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --group pyproject.toml:bench -c requirements.lock -o benchmarks/requirements.lock
	$(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 -o benchmarks/peers/requirements.lock benchmarks/peers/requirements.in

clean:  ## Remove built files
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
