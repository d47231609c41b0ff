# Two commands do everything on a fresh machine: make run, make test. Each installs what it needs first.
# make test proves the main job in minutes; make test-all has every test.
# Any Python from 3.11 to 3.13 will do: make run PYTHON=python3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test test-all check versions faults gpu servers install clean

run: install
	$(BIN)/dpo demo

# Two tests at a time, each with one thread, so that they do not slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test: check
	$(PYTEST) -m main_job

test-all: test
	$(BIN)/pytest --hypothesis-profile=random tests/render
	$(PYTEST) -m 'slow and not main_job'

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

# The fast tests on the newest Python that is here, and the engine's laws on the oldest torch and transformers allowed.
versions:
	.ci/versions

# Two hundred faults injected into real runs, and what became of them.
faults: install
	$(BIN)/python -m tests.faults --injections 200

# What only a GPU can prove, in eight minutes, most important first. Any Python with dpo_core's packages will do: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
gpu:
	$(GPU_PYTHON) -m tests.gpu

# Postgres (apt install postgresql), MLflow, Prefect and a worker on this computer, until Ctrl-C: docs/deployments.md.
servers: install
	$(BIN)/python -m deployments.servers

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.13 …")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
