# Everything here sets itself up: Python 3.11 or later and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An environment belongs to one Python: another PYTHON rebuilds it.
VERSION := $(shell $(PYTHON) -c "import platform, sys; print(platform.python_version() + sys.abiflags)")
STAMP := $(VENV)/.installed-$(VERSION)
# What draws, profiles or is only measured beside ours is kept apart: nobody needs it to test or to run Givalia.
DRAW := build/bench-venv
DRAW_STAMP := $(DRAW)/.installed
SOURCES := pyproject.toml requirements.lock $(wildcard plugins/*/pyproject.toml) example_modules_pkg/pyproject.toml

.PHONY: help demo test test-all unit lint format lock bench bench-ten-million bench-peers bench-compare flames clean

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# The locked dependencies first, each with its hash; then our own packages, which need nothing more.
$(STAMP): $(SOURCES)
	$(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-e . $(addprefix -e ,$(wildcard plugins/*)) -e example_modules_pkg
	@touch $(STAMP)

demo: $(STAMP)  ## Watch it work: a job pushed back, one called off, a server killed under the rest
	@$(BIN)/givalia demo

test: $(STAMP)  ## Every test, in parts beside each other
	$(BIN)/python tests/parts.py

# What takes too long for each change: every place at which a call of the system can fail, a thousand calls that are cut short for
# each verb, and two thousand damages.
test-all: $(STAMP)  ## Every test, and those that try everything; as root also full file systems; the fast ones on each Python
	status=0; GIVALIA_EACH=1 GIVALIA_CUTS=1000 GIVALIA_DAMAGES=2000 GIVALIA_IMAGES=5000 GIVALIA_FULL_S=150 GIVALIA_END_S=5400 \
	$(BIN)/python tests/parts.py || status=1; $(BIN)/python tests/pythons.py || status=1; exit $$status

unit: $(STAMP)  ## The fast tests
	$(BIN)/python -m pytest tests/unit tests/contract plugins example_modules_pkg

lint: $(STAMP)  ## Style, types and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An aim that is missed is no reason to leave out the plots: they are drawn, and then make says so.
bench: $(STAMP) $(DRAW_STAMP)  ## The figures of the README and of docs/benchmarks.md
	status=0; $(BIN)/python benchmarks/run.py --json build/bench.json || status=$$?; \
	$(DRAW)/bin/python benchmarks/plot.py build build/bench.json; exit $$status

bench-ten-million: $(STAMP) $(DRAW_STAMP)  ## The figures with ten million jobs waiting; takes a while
	status=0; $(BIN)/python benchmarks/run.py --ten-million --json build/bench-ten-million.json || status=$$?; \
	$(DRAW)/bin/python benchmarks/plot.py build build/bench.json build/bench-ten-million.json; exit $$status

# For one kind of load: make bench-compare BASE=HEAD~3 COMPARE="--kinds singles --restarts 24".
bench-compare: $(STAMP)  ## BASE, a commit, beside what is here: whether jobs cost more than before
	$(BIN)/python benchmarks/compare.py --base $(BASE) $(COMPARE)

flames: $(STAMP) $(DRAW_STAMP)  ## Flame graphs of server, worker and client under load
	$(BIN)/python benchmarks/flames.py

$(DRAW_STAMP): benchmarks/requirements.lock
	$(PYTHON) -m venv $(DRAW)
	$(DRAW)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	@touch $(DRAW_STAMP)

# It brings the peers by itself, into build/peers. For a quick look: make bench-peers PEERS="--scale 0.1 --repeats 1"; with ten
# million jobs waiting: make bench-peers PEERS=--ten-million.
bench-peers: $(STAMP) $(DRAW_STAMP)  ## Givalia beside other job servers and queues, and every goal, in one run
	status=0; PYTHONPATH=benchmarks $(BIN)/python -m peers $(PEERS) || status=$$?; \
	$(DRAW)/bin/python benchmarks/plot.py build build/bench-peers.json; exit $$status

lock:  ## Pin every dependency anew, with hashes and without naming an index
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

clean:  ## Remove what was made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
