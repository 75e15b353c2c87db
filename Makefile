# Everything is set up in .venv; nothing is installed outside of it.
#   make serve [PORT=8000]   set up and serve        make test        set up and run the tests
#   make test-slow           the tests of minutes    make lint        style, types
#   make test-container      the images, by a container engine that is there
#   make fuzz [SECONDS=300]  fuzz, or EXECUTIONS=N   make bench       measure
#   make clean               remove .venv
.DEFAULT_GOAL := help
.PHONY: help serve test test-slow soak fuzz test-container lint format bench bench-ops bench-gpu bench-peers tables build clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The first of these that really is Python 3.11 or newer (a name on the PATH may be an empty shim).
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
PYTHON ?= $(shell for candidate in $(CANDIDATES); do \
	$$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$candidate && break; done)

help:
	@sed -n '2,6p' Makefile | cut -c 3-

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer, with its venv module, is needed and was not found; name one with PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); the first time takes a few minutes."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.server: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) --editable '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) --editable '.[server,dev]'
	@touch $@ $(VENV)/.server

serve: $(VENV)/.server
	@exec $(BIN)/stequant serve $(if $(PORT),--port $(PORT))

# Two at a time, a file each: most tests wait for a process that they have started.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not container'

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow and not soak and not container'

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak

# Two targets at a time. Inputs that fail are printed, and saved in FOUND.
SECONDS := 300
FOUND := build/fuzz
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/run.py --processes 2 --found $(FOUND) $(if $(EXECUTIONS),--runs $(EXECUTIONS),--seconds $(SECONDS))

# BUILD_FLAGS, in the environment, are more flags for `docker build`.
test-container: $(VENV)/.dev
	$(BIN)/python -m pytest -m container tests/container

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile tests/container/nginx.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml tests/container/nginx.yml

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks http

bench-ops: $(VENV)/.dev
	$(BIN)/python -m benchmarks ops

# Needs a CUDA device, and says so where there is none.
bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks gpu

bench-peers: $(VENV)/.dev
	$(BIN)/python -m benchmarks peers

# The tables of the README and of docs/operators.md, and its pictures, made from the code.
tables: $(VENV)/.dev
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/operators.py
	$(BIN)/python docs/pictures.py

build: $(VENV)/.dev
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info
