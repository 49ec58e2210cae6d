# Everything starts here; `make help` lists it. Each target is alone enough on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Every version is pinned, so nothing is to be resolved. Modules are compiled when they are first imported; most never are.
INSTALL := $(BIN)/python -m pip install -qq --no-deps --no-compile
# Arguments for the program, such as: make demo ARGS="grpo.steps=3"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup prepare demo up test test-unit test-fast lint format clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## create the environment in .venv (3.6 GB, CPU)

$(VENV)/.ready: requirements/torch-cpu.txt requirements/hashed/cpu.txt requirements/hashed/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=…")'
	@echo "[setup 1/3] environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[setup 2/3] torch, vLLM and all else, as pinned (about 1 GB to download)"
	@($(INSTALL) -r requirements/torch-cpu.txt && $(INSTALL) --require-hashes -r requirements/hashed/dev.txt) & \
		torch=$$!; $(INSTALL) --require-hashes -r requirements/hashed/cpu.txt; code=$$?; wait $$torch && exit $$code
	@echo "[setup 3/3] this project"
	@$(INSTALL) --editable .
	@touch $@

prepare: setup ## make model, encoder, corpus, questions and index (cached in data/)
	@$(BIN)/research prepare $(ARGS)

demo: setup ## the whole line on the CPU: prepare, serve, train, reload, evaluate, answer
	@$(BIN)/research demo $(ARGS)

up: setup ## run retriever, policy and trainer side by side; Ctrl-C ends all
	@$(BIN)/research up $(ARGS)

test: setup prepare ## all tests, with real services and real vLLM
	@$(BIN)/python -m tests.support.run_all $(ARGS)

test-unit: setup ## all unit tests, no server
	@$(BIN)/python -m pytest tests/unit $(ARGS)

test-fast: setup ## for the daily loop, under two minutes: lint, types, unit tests but the slowest
	@$(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/python -m pytest tests/unit -q -m "not slow" $(ARGS)

lint: setup ## format check, lint and type check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove the environment, prepared data and runs
	rm -rf $(VENV) data runs
