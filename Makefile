# On a machine that has Python (3.11 or newer) and make:
#   make search   install into .venv, then search over the bundled SRGAN
#   make test     install with the test tools, then lint, types, import contracts and tests
#   make check    the same, with only the tests that run no search
PYTHON ?= python3
BIN := .venv/bin

# Tests that run no search
QUICK := $(addprefix tests/,config costs export images metrics quantizers system contracts/test_quantizers.py report/test_build.py)

.PHONY: search test check static install install-test

search: install
	$(BIN)/autoq search --model srgan --budget 50

test: static
	$(BIN)/python -m pytest --numprocesses 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

check: static
	$(BIN)/python -m pytest --numprocesses 2 $(QUICK)

static: install-test
	$(BIN)/ruff check autoq benchmarks tests
	$(BIN)/ruff format --check autoq benchmarks tests
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed
install-test: .venv/installed-test

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@ .venv/installed
