# Two commands for a newcomer: `make demo` and `make test`. Both create their environment first.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Ray's sockets need a short path, wherever TMPDIR points.
export RAY_TMPDIR ?= /tmp
export RAY_AUTH_MODE ?= disabled
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help install demo test test-ray test-rest test-all test-nodes test-slow test-full test-without-ray check format bench clean cluster-check

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP) ## create .venv with the pinned versions

demo: $(STAMP) ## motion from an MP4, one subject finetuned, three videos rendered: out/demo/index.html
	$(BIN)/python examples/demo.py

test: $(STAMP) ## the tests without the long ones, in two processes
	$(MAKE) --no-print-directory -j 2 --output-sync=target test-ray test-rest

test-ray: $(STAMP) ## the tests that start Ray
	$(BIN)/python -m pytest -m 'ray and not slow and not nodes'

test-rest: $(STAMP) ## all others
	$(BIN)/python -m pytest -m 'not ray and not slow'

test-slow: $(STAMP) ## the long tests
	$(BIN)/python -m pytest -m slow

test-nodes: $(STAMP) ## growth and loss of Ray nodes on this machine (about half an hour)
	$(BIN)/python -m pytest -m nodes

test-all: $(STAMP) ## the tests and the long ones, without test-nodes
	$(MAKE) --no-print-directory test
	$(MAKE) --no-print-directory test-slow

test-full: $(STAMP) ## the paper's model at full size on the CPU (24 GB of memory, up to 25 minutes)
	$(BIN)/python benchmarks/full_size.py

test-without-ray: ## the tests of dreampose/ in an environment that has no Ray
	test -x $(VENV)-without-ray/bin/python || $(PYTHON) -m venv $(VENV)-without-ray
	$(VENV)-without-ray/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	! $(VENV)-without-ray/bin/python -c 'import ray' 2>/dev/null
	$(VENV)-without-ray/bin/python -m pytest -m 'not ray' --ignore=tests/jobs --ignore=tests/serve --ignore=tests/cluster

check: $(STAMP) ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

cluster-check: $(STAMP) ## the files in cluster/: accepted by Ray and KubeRay, every stage fits a node type
	$(BIN)/python -m cluster.check

format: $(STAMP) ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## scores of renders of unseen subjects, beside copying the photo
	$(BIN)/python benchmarks/catwalk.py --out out/benchmark

clean: ## remove outputs and environments
	rm -rf out $(VENV) $(VENV)-without-ray *.egg-info .ruff_cache .import_linter_cache
