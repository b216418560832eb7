# On a machine that has Python (3.11 or newer) and make:
#   make search   install into .venv, then search over the bundled SRGAN
#   make test     install with the test tools, then lint, types, import contracts, dependencies and tests
#   make check    the same, without the tests that take long: see SLOW in tests/conftest.py
#   make docs     build the documentation site in site/; a broken link fails
#   make lock     resolve the dependencies again, into requirements/
PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test check docs static install install-test lock

search: install
	$(BIN)/autoq search --model srgan --budget 50

test: static
	$(BIN)/python -m pytest --numprocesses 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

check: static
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

docs: install
	$(BIN)/pip install -q --no-build-isolation -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

static: install-test
	$(BIN)/ruff check autoq benchmarks tests
	$(BIN)/ruff format --check autoq benchmarks tests
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml

install: .venv/installed
install-test: .venv/installed-test

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch is left out of the locks: its CPU and CUDA builds need different packages under one version.
TORCH := torch torchvision -c constraints.txt
.venv/installed: pyproject.toml constraints.txt requirements/run.txt | .venv/bin/python
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements/run.txt
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt requirements/test.txt | .venv/bin/python
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements/test.txt
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@ .venv/installed

LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c constraints.txt \
	--no-emit-package torch --no-emit-package torchvision
lock: | .venv/bin/python
	$(BIN)/pip install -q uv
	printf 'hatchling\neditables\n' | $(LOCK) pyproject.toml - -o requirements/run.txt
	printf 'hatchling\neditables\n' | $(LOCK) pyproject.toml - --extra test -o requirements/test.txt
