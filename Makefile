# Every target creates its .venv first; only Python 3.11 or later is required.
#   make demo     the whole workflow on built-in data     make test    everything that CI runs
#   make check    ruff, mypy, fast tests                  make soak    long versions of the tests
#   make bench    the benchmarks, as JSON                 make setup   the .venv only
#   make wheel    dist/kdpipe-*.whl, to install elsewhere
#   make families test every causal family of transformers, a quarter of an hour; writes docs/families.md
# PYTHON=...       another interpreter                    TORCH_INDEX=...  another package index for torch
# NEWEST=...       Python 3.12 or later for the second environment of `make test`, which reads the caches of the first

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
NEWEST ?= $(shell for p in python3.14 python3.13 python3.12 python3 \
	$$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9].[0-9]*/bin/python 2>/dev/null | sort --reverse); do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1 && echo $$p && break; done)
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
NEWEST_STAMP := .venv-newest/.installed
NEWEST_PIP := .venv-newest/bin/python -m pip install --disable-pip-version-check --quiet
PYTEST := $(BIN)/pytest -n 2

# Test workers and child processes read bytecode instead of compiling it again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup wheel demo check fast test test-busy soak bench families lint words snapshots
.DEFAULT_GOAL := check

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "kdpipe needs Python 3.11 or later: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating .venv: one to two minutes, plus the download of torch" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@date +%s > .venv/began
	$(PIP) setuptools wheel
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) --no-build-isolation --editable ".[dev]"
	@echo "setup took $$(($$(date +%s) - $$(cat .venv/began))) seconds" && rm .venv/began
	@touch $(STAMP)

$(NEWEST_STAMP): pyproject.toml requirements-newest.txt
	@newest="$(NEWEST)"; set -e; \
	if test -z "$$newest"; then \
		echo "no Python 3.12 or later found for the second environment: make test NEWEST=/path/to/python3.13" >&2; exit; fi; \
	echo "creating .venv-newest with $$newest: half a minute" >&2; \
	$$newest -m venv --clear .venv-newest; \
	$(NEWEST_PIP) --requirement requirements-newest.txt; \
	$(NEWEST_PIP) --no-deps --no-build-isolation --editable .; \
	touch $@

wheel:
	rm -rf build
	$(PYTHON) -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	rm -rf build
	@ls dist/kdpipe-*.whl

demo: setup
	$(BIN)/kdpipe demo --out runs/demo

lint: setup
	@begin=$$(date +%s) && $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && \
		echo "lint took $$(($$(date +%s) - begin)) seconds"

check: setup
	@$(MAKE) --no-print-directory --jobs 2 lint fast

fast: setup
	$(PYTEST) -m "not slow and not soak and not gpu"

test: lint $(NEWEST_STAMP)
	$(PYTEST) -m "not soak and not gpu"

test-busy: setup
	$(BIN)/python tests/support/busy.py

soak: setup
	$(PYTEST) -m soak -rP --timeout 7200

bench: setup
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/stage_one.py
	$(BIN)/python benchmarks/stage_two.py
	$(BIN)/python benchmarks/recovery.py --work runs/recovery
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/intervals.py

families: setup
	$(BIN)/python benchmarks/families.py

words: setup
	$(BIN)/python tests/support/words.py

snapshots: setup
	PYTHONPATH=tests $(BIN)/python tests/support/snapshots.py
