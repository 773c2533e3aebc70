# Every target sets up by itself: a .venv, the constraints file, pip. Nothing else is needed but Python 3.11 or later.
#   make demo     the main job on an embedded default     make test    everything that CI needs
#   make check    ruff, mypy, fast tests                  make soak    the long versions of the tests
#   make bench    the benchmarks, as JSON                 make setup   the .venv alone
# PYTHON=...       another interpreter                    TORCH_INDEX=...  another package index for torch

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
PYTEST := $(BIN)/pytest -n 2

.PHONY: setup demo check test soak bench lint
.DEFAULT_GOAL := check

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "kdpipe needs Python 3.11 or later: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setting up .venv: one to two minutes, and the download of torch" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) setuptools wheel
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $(STAMP)

demo: setup
	$(BIN)/kdpipe demo --out runs/demo

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: lint
	$(PYTEST) -m "not slow and not soak and not gpu"

test: lint
	$(PYTEST) -m "not soak and not gpu"

soak: setup
	$(PYTEST) -m soak -rP --timeout 7200

bench: setup
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/stage_one.py
	$(BIN)/python benchmarks/stage_two.py
	$(BIN)/python benchmarks/recovery.py --work runs/recovery
	$(BIN)/python benchmarks/transfer.py
