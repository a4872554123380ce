# The targets are the steps of continuous integration. Each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.venv/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ibm,references]'
	@touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

run: .venv/core ## install, then train an adapter in the embedded model and measure it (resumes if interrupted)
	$(BIN)/qrun train --resume

test: .venv/dev ## the test suite but for what takes minutes, on all cores
	$(BIN)/python -m pytest -n logical --dist loadfile -m "not long"

test-long: .venv/dev ## the tests that it leaves out: clusters, a server, whole reproductions
	$(BIN)/python -m pytest -n logical --dist loadfile -m long

check: .venv/dev ## lint and the tests that take a minute, on all cores
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m pytest -n logical -m "not slow and not data"

lint: .venv/dev ## ruff, mypy, no secret in a tracked file
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python scripts/leaks.py

test-min: ## the fast tests with the lowest versions that are allowed, in .venv-min
	$(PYTHON) -m venv .venv-min && .venv-min/bin/python -m pip install --quiet -c constraints-min.txt -e '.[dev]'
	.venv-min/bin/python -m pytest -n logical -m "not slow and not data"

test-max: ## the fast tests with the newest versions that are allowed, in .venv-max
	$(PYTHON) -m venv .venv-max && .venv-max/bin/python -m pip install --quiet --upgrade "$$(grep '^torch==' constraints.txt)" -e '.[dev]'
	.venv-max/bin/python -m pytest -n logical -m "not slow and not data"

audit: .venv/dev ## known vulnerabilities of the pinned packages; asks an advisory database, so it needs the network
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

fuzz: .venv/dev ## 5,000 wrong words, broken files and odd names from a seed: each runs or is refused in one line
	$(BIN)/python scripts/fuzz.py

faults: .venv/dev ## 200 kills, full disks, broken stores, torn files, a failing hub and IBM from a seed: finished work stays, the next start goes on
	$(BIN)/python scripts/faults.py

bench: .venv/dev ## speed beside Aer, PennyLane, tensorcircuit-ng, PEFT and the harness in one run: results/bench, 20 minutes
	$(BIN)/python scripts/bench.py

docs: .venv/core ## the pages, as a site in site/
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

ui: .venv/core ## the MLflow UI on results/
	$(BIN)/qrun ui

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

.PHONY: run test test-long test-min test-max check lint audit fuzz faults bench docs ui help
