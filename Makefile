# make demo        runs docs/examples/quickstart.py
# make check       formatter, linter, type checker, the examples of docstrings and a quick test of each room
# make test        formatter, linter, type checker and the fast tests
# make test-all    the same with the slow tests
# make docs        runs the notebooks and builds the site of the documentation into build/site
# make lint        formatter, linter and type checker alone
# make format      puts the code into its format
# make dist        builds the sdist, and the wheel from it, into dist, and checks what a package index will show
# make clean       removes the environments and everything built
#
# LANE=newest|oldest|nightly chooses the versions (.ci/constraints*.txt) and the environment (.venv-<lane>).
# Whatever is missing is set up first. PYTEST_ARGS is handed to pytest, which runs in WORKERS processes (0: in its own).

LANE ?= newest
PYTEST_ARGS ?=
WORKERS ?= auto

ifeq ($(filter newest oldest nightly,$(LANE)),)
$(error There is no lane '$(LANE)'. The lanes are: newest, oldest, nightly)
endif

VENV := .venv-$(LANE)
PYTHON := $(VENV)/bin/python
CONSTRAINTS := .ci/constraints$(if $(filter newest,$(LANE)),,-$(LANE)).txt
# With the folders, so that a removed or renamed file counts as a change.
SOURCES := $(shell find src -name __pycache__ -prune -o -print)

# Each with its outputs.
NOTEBOOKS := $(patsubst docs/%,build/%,$(wildcard docs/notebooks/*.ipynb))

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := test

export TF_CPP_MIN_LOG_LEVEL ?= 3
export KERAS_BACKEND := tensorflow
export NO_MKDOCS_2_WARNING := 1
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# Nothing is compiled when it is installed; without this, each process would compile all of TensorFlow again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-all docs lint format dist clean setup

demo: setup
	$(PYTHON) docs/examples/quickstart.py

check: override PYTEST_ARGS += -m quick
check: test

# The cases of each test are shared between the other lanes, which see a half of them each.
OF_LANE := $(if $(filter oldest,$(LANE)),--share 1/2)$(if $(filter nightly,$(LANE)),--share 2/2)

test: setup $(if $(filter newest,$(LANE)),lint)
	$(PYTHON) -m pytest -n $(WORKERS) --dist worksteal $(if $(OF_LANE),-m "not slow and not once" $(OF_LANE)) $(PYTEST_ARGS)

test-all: override OF_LANE =
test-all: override PYTEST_ARGS += -m ""
test-all: test

# Two at a time; an error in a cell stops the build.
docs: setup
	$(MAKE) --no-print-directory --jobs 2 $(NOTEBOOKS)
	$(PYTHON) -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "The site is in build/site: $(PYTHON) -m http.server --directory build/site"

# Drawn for the page, not as a script would be. What TensorFlow says of the machine is of interest where a cell fails.
build/notebooks/%.ipynb: docs/notebooks/%.ipynb $(VENV)/.package
	@mkdir -p $(@D)
	@echo "Running $<"
	@env -u MPLBACKEND TF_NUM_INTRAOP_THREADS=1 \
		$(PYTHON) -m jupyter execute --output $(abspath $@) $< 2>$(@D)/$*.log || \
		{ cat $(@D)/$*.log; exit 1; }

# The checks are those of one lane: they read the source, not what is installed beside it.
lint: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: setup
	$(PYTHON) -m ruff check --quiet --fix --exit-zero .
	$(PYTHON) -m ruff format .

dist: $(VENV)/.dist
	rm -rf dist
	$(PYTHON) -m build --no-isolation
	$(PYTHON) -m twine check --strict dist/*

clean:
	rm -rf .venv-* build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests docs -name __pycache__ -prune -exec rm -rf {} +

setup: $(VENV)/.package

$(VENV)/.dependencies: pyproject.toml $(CONSTRAINTS) .ci/setup
	.ci/setup $(LANE) $(VENV) $(CONSTRAINTS)
	touch $@

$(VENV)/.dist: $(VENV)/.dependencies
	$(PYTHON) -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) build twine
	touch $@

# As a wheel, never from src: the tests see what a user gets.
$(VENV)/.package: $(VENV)/.dependencies $(SOURCES)
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	touch $@
