# Everything lives in .venv; each target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AUDITED := $(VENV)/.audit
DEPLOYABLE := $(VENV)/.deploy

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Pinned by constraints.txt, whatever the ranges in pyproject.toml allow.
$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard protos/mastery/v1/*.proto)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@echo "setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,cli,embedded,train,dev]'
	@touch $@

.PHONY: run
run: $(READY)  ## Run everything here, with a simulated class; Ctrl-C stops it
	@$(BIN)/mastery-grpc dev

.PHONY: test
test: $(READY)  ## Run the tests, on a real Redis and a real Kafka where one can be had
	@$(BIN)/pytest -q tests/unit tests/contract tests/client tests/integration

.PHONY: e2e
e2e: $(READY)  ## Run the end-to-end tests: the service's own processes on Redis and Apache Kafka
	@$(BIN)/pytest -q -s tests/e2e

.PHONY: check
check: $(READY) lint types arrows lint-protos breaking  ## Run every static check

.PHONY: lint
lint: $(READY)  ## Check style
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

.PHONY: types
types: $(READY)  ## Check types
	@$(BIN)/mypy

.PHONY: arrows
arrows: $(READY)  ## Check that imports run one way
	@$(BIN)/lint-imports --no-cache

.PHONY: protos
protos: $(READY)  ## Generate the stubs
	@$(BIN)/python hatch_build.py

.PHONY: lint-protos
lint-protos: $(READY)  ## Check the contract's style
	@$(BIN)/python hatch_build.py lint

.PHONY: breaking
breaking: $(READY)  ## Check that the contract breaks nobody, against main
	@$(BIN)/python hatch_build.py breaking

.PHONY: descriptors
descriptors: $(READY)  ## Write the contract as one descriptor set, for `grpcurl -protoset`
	@$(BIN)/python hatch_build.py descriptors

$(DEPLOYABLE): $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deploy]'
	@touch $@

.PHONY: chart
chart: $(DEPLOYABLE)  ## Write what the chart says of values and settings anew, from values.yaml and settings.py
	@$(BIN)/python -m tests.deploy.chart_documents

.PHONY: deploy-check
deploy-check: $(DEPLOYABLE)  ## Check chart, image and compose file with the tools that .ci/run installs; as root
	@$(BIN)/pytest -q -s tests/deploy

.PHONY: bench
bench: $(READY)  ## Measure: calls against a bare handler, ingest against a loop without logic
	@$(BIN)/python -m tests.load.bench

.PHONY: chaos
chaos: $(READY)  ## Kill, cut off and restart everything, many times, and count what was lost or doubled
	@$(BIN)/python -m tests.chaos

.PHONY: fuzz
fuzz: $(READY)  ## Feed a million hostile records to the decoder, and 100,000 hostile messages to each RPC
	@$(BIN)/python -m tests.fuzz

.PHONY: audit
audit: audit-tree audit-server audit-dependencies  ## Look for secrets, unsafe code and known vulnerabilities, and attack a running server

$(AUDITED): $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'
	@touch $@

# The rules of Bandit are ruff's S, which `make check` holds the tree to as well.
.PHONY: audit-tree
audit-tree: $(AUDITED)
	@$(BIN)/ruff check --quiet --select S mastery_grpc clients hatch_build.py
	@$(BIN)/python -m tests.hardening.secrets_in_tree

.PHONY: audit-server
audit-server: $(READY)
	@$(BIN)/python -m tests.hardening

.PHONY: audit-dependencies
audit-dependencies: $(AUDITED)
	@$(BIN)/python -m tests.hardening.dependencies

.PHONY: clean
clean:  ## Remove what was made here, the data of `make run` included
	rm -rf $(VENV) .cache .mastery .mypy_cache .pytest_cache .ruff_cache .hypothesis stubs dist
