# Every command a contributor needs. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo serve check test test-slow docs bench-attention bench-training bench-weights bench-decode bench-serving bench-drafts bench-data bench-family lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv and install the locked dependencies into it
	@echo "setup: ready"

# The stamp is written last, so a set-up that was interrupted is simply done again.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) was not found; install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: ringworld needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1); name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: $(PYTHON) cannot make virtual environments; install its venv package (on Debian and Ubuntu: python3-venv) and try again"; exit 1; }
	@echo "setup: virtual environment in $(VENV), with $$($(PYTHON) -V)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "setup: installing what requirements.lock pins, every file checked against its hash"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --require-hashes -r requirements.lock
	@echo "setup: installing ringworld itself, editable"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps --no-build-isolation -e .
	@touch $@

# A step takes gigabytes of fresh memory: in pages of 2 MB the system clears it an eighth sooner.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: setup ## the whole story: fetch, train in stages, measure, draw
	@$(BIN)/ringworld demo

# The last stage of the demo, or another: make serve MODEL=smollm2-135m
serve: MODEL ?= runs/demo/16k/model
serve: setup ## the demo's model at http://127.0.0.1:8000: the page and the APIs; MODEL=NAME for another
	@test -e $(MODEL) || test "$(MODEL)" != runs/demo/16k/model || { echo "serve: there is no $(MODEL) yet; run make demo first, or name a model: make serve MODEL=smollm2-135m"; exit 1; }
	@$(BIN)/ringworld serve $(MODEL)

check: setup ## formatting, lint, types and the house rules
	@echo "check: formatting"
	@$(BIN)/ruff format --check .
	@echo "check: lint"
	@$(BIN)/ruff check .
	@echo "check: types"
	@$(BIN)/pyrefly check
	@echo "check: house rules"
	@$(BIN)/python -m pytest -q tests/test_house.py

# Two processes use two cores; each takes whole files, whose tests share what is costly to set up.
# When one of them dies the run ends: a new one in its place has been seen to wait for ever.
test: check ## all of check, then every test that is not slow
	@echo "test: every test that is not slow"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

test-slow: check ## all of check, then every test
	@echo "test: every test"
	@$(BIN)/python -m pytest -m "slow or not slow"

docs: setup ## the pages and the API reference as a site in build/docs
	@rm -rf docs/api
	@JAX_PLATFORMS=cpu $(BIN)/sphinx-build -W --keep-going --quiet --builder html docs build/docs
	@echo "docs: build/docs/index.html"

bench-attention: setup ## attention beside torch and ringattention; ARGS="--help" lists its options
	@$(BIN)/python -m benchmarks.attention $(ARGS)

bench-training: setup ## loss and gradients of a small model beside LWM's; ARGS="--help" lists its options
	@$(BIN)/python -m benchmarks.training $(ARGS)

bench-weights: setup ## a prompt read and an answer written, beside transformers; ARGS="--help" lists its options
	@$(BIN)/python -m benchmarks.weights $(ARGS)

bench-decode: setup ## an answer written with float32, bfloat16 and int8, beside llama.cpp
	@$(BIN)/python -m benchmarks.decode $(ARGS)

bench-serving: setup ## the engine with 1 to 16 requests, beside transformers and llama.cpp; ARGS="--help" lists its options
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-drafts: setup ## one answer with and without guesses of its next tokens
	@$(BIN)/python -m benchmarks.drafts $(ARGS)

bench-family: setup ## every figure of the models that ship, from their weights; ARGS="--help" lists its options
	@$(BIN)/python -m benchmarks.family $(ARGS)

bench-data: setup ## text, films, pictures and rows beside the libraries alone; ARGS="--help" lists its options
	@$(BIN)/python -m benchmarks.data $(ARGS)

# Needs uv (any recent one) on the path or in .venv; nothing else here does.
lock: ## resolve pyproject.toml again and write requirements.lock
	@command -v uv >/dev/null || { echo "lock: uv was not found; install it (pip install uv) and try again"; exit 1; }
	@uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	  --fork-strategy fewest --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --group dev --group docs --group build pyproject.toml --output-file requirements.lock
	@echo "lock: wrote requirements.lock; run make test before you commit it"

clean: ## remove what the commands above made, except runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist build docs/api *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
