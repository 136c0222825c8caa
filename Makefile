# Everything a contributor runs, each by one name. `make help` lists it.
#
# All targets share one environment, .venv, made on first use. A stamp file in it says what has
# been installed, so that a second run starts at once; changing pyproject.toml installs again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The first Python on PATH that is new enough and can make environments. A name on PATH proves
# nothing (it may be a version manager's shim), so each candidate is run.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1; then echo $$p; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS)

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' \
	| expand -t 24

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer (with its venv module) was found on PATH." >&2; \
		echo "Install one (on Debian: apt-get install python3 python3-venv)," >&2; \
		echo "or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml clusterkit/_version.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,cli]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml clusterkit/_version.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.installed-demo $@

.PHONY: demo demo-control dev
demo: $(VENV)/.installed-demo ## a cluster of processes, joins, a kill and leaves: no key is lost
	$(BIN)/clusterkit demo

demo-control: $(VENV)/.installed-demo ## the same with the migration hook taken out: keys are lost
	$(BIN)/clusterkit demo --without-hooks

dev: $(VENV)/.installed-dev ## .venv with everything that the targets below need

.PHONY: test test-only test-unit test-property test-contract test-typing test-integration
test: lint test-only ## static checks and every quick tier of tests

test-only: $(VENV)/.installed-dev ## every quick tier of tests
	$(PYTEST)

test-unit test-property test-contract test-typing test-integration: test-%: $(VENV)/.installed-dev
	$(PYTEST) tests/$*

.PHONY: test-etcd34 test-slow
test-etcd34: $(VENV)/.installed-dev ## the contract tests over an etcd 3.4, which it gets
	found="$$(tools/etcd34.sh build/etcd34)"; \
	TEST_ETCD_34="$$found" $(PYTEST) tests/contract -k etcd34

test-slow: $(VENV)/.installed-dev ## tests that must let time pass: frozen servers, short-lived tokens
	$(PYTEST) tests/slow

MINUTES ?= 20
.PHONY: chaos
chaos: $(VENV)/.installed-dev ## faults on real processes for MINUTES=20, then a verdict; SEED= repeats
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

.PHONY: test-docker
test-docker: $(VENV)/.installed-dev ## kits on etcd in Docker whose members die and are cut off
	$(BIN)/pytest tests/docker

.PHONY: figures bench
figures: $(VENV)/.installed-dev ## measures leaves, fencing and outages; ARGS="--only kill --ttl 2,30"
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench: $(VENV)/.installed-dev ## hooks and placement beside plain code that does the same; ARGS="--only placement --quick"
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: scale
scale: $(VENV)/.installed-dev ## how costs grow with nodes, up to 500 x 16,384; ARGS="--sizes 10,50" or "--one-node 5000,1048576"
	$(BIN)/python -m tests.scale $(ARGS)

.PHONY: mutants
mutants: $(VENV)/.installed-dev ## faults put into the pure code: do the tests find them? ARGS="--only core.plan"
	$(BIN)/python tools/mutants.py $(ARGS)

.PHONY: lint format
lint: $(VENV)/.installed-dev ## ruff, mypy strict, the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## puts the code into its one form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: compat
compat: | $(BIN)/python ## fresh environments: each Python found, protobuf 5, 6 and 7
	$(BIN)/python tools/compat.py

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

.PHONY: docs docs-serve
docs: $(VENV)/.installed-docs ## the documentation as a site in build/site; a warning is an error
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed-docs ## the same at http://127.0.0.1:8000, made again as it changes
	$(BIN)/mkdocs serve --strict

.PHONY: proto
proto: | $(BIN)/python ## generates the Python modules of proto/ again
	$(BIN)/python proto/generate.py

.PHONY: build clean
build: | $(BIN)/python ## a wheel in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: release-check
release-check: $(VENV)/.installed-dev ## builds sdist and wheel, looks into them, runs the demo from them
	$(BIN)/python -m tools.release_check

clean: ## removes what the other targets made
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find clusterkit examples tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
