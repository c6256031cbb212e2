# Everything a person types. Each target sets up first; a set-up that is current takes no time.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONFIG ?= configs/local.yaml
SET ?=
ARGS ?=

VENV := .venv/bin
IN := $(VENV)/python -m pipelines.env

.DEFAULT_GOAL := help
.PHONY: help setup run stop status monitor test test-fast test-slow test-heavy lint fmt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  CONFIG=FILE picks a configuration, SET="key=value ..." overrides values, ARGS goes to pytest.'

setup: ## Make .venv from the lock and compile what DeepSpeed needs
	@$(PYTHON) -m pipelines.setup

run: setup ## Start Ray, run the pipeline as a job, serve, ask for recommendations
	@$(VENV)/python -m pipelines.local up --config $(CONFIG) $(foreach pair,$(SET),--set '$(pair)')

stop: ## End what `make run` started, and nothing else
	@if [ -x $(VENV)/python ]; then $(VENV)/python -m pipelines.local down; \
	else echo 'nothing to stop: there is no .venv, so nothing was started'; fi

status: ## Say what is up
	@if [ -x $(VENV)/python ]; then $(VENV)/python -m pipelines.local status; \
	else echo 'down: there is no .venv'; fi

monitor: setup ## Start Prometheus on what is up, and say where its pages are
	@$(VENV)/python -m pipelines.monitor up

test: lint ## Run lint and the suite, all but what is marked heavy
	@$(IN) python -m pytest $(ARGS)

test-fast: setup ## Run the tests that need neither Ray nor an engine
	@$(IN) python -m pytest -m 'not slow and not heavy and not gpu' $(ARGS)

test-slow: setup ## Run the tests that do
	@$(IN) python -m pytest -m 'slow and not heavy' $(ARGS)

test-heavy: setup ## Run minutes of real faults: nodes killed, servers overloaded, disks full
	@$(IN) python -m pytest -m heavy $(ARGS)

lint: setup ## Check style, formatting, types, import borders, licences and known vulnerabilities
	@$(IN) ruff check
	@$(IN) ruff format --check
	@$(IN) env PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright
	@$(IN) lint-imports
	@$(IN) python .ci/licences.py
	@.ci/advisories --if-offered

fmt: setup ## Format the code
	@$(IN) ruff check --fix
	@$(IN) ruff format

clean: stop ## Remove the venv, caches and machine state; runs/ stays
	@rm -rf .venv .local .pytest_cache .ruff_cache .hypothesis .import_linter_cache .numba_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
