# make demo: environment, installation, the embedded demo.   make test: environment, installation, every check.
# PYTHON chooses the interpreter (3.10 or later); CONSTRAINTS= installs the newest versions instead of the known-good set.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
RUN := $(VENV)/bin/python -m
# One thread a process: on models as tiny as those of the tests a second one only waits.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal
# The checks before the tests run side by side.
MAKEFLAGS += --jobs=2
# Bytecode is written for what is imported, and not for the whole installation: that would take two minutes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test coverage quick fuzz crash soak oldest newest lint docs format clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --no-compile --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/sensedict demo --output demo

test: lint docs
	$(PYTEST)

# Which lines the tests run. It takes half as long again.
coverage: $(VENV)/.installed
	$(PYTEST) --cov --cov-report=term

quick: $(VENV)/.installed
	$(PYTEST) -m "not slow"

fuzz: $(VENV)/.installed
	rm -rf fuzz
	$(VENV)/bin/python tests/fuzzing.py fuzz 2000

crash: $(VENV)/.installed
	rm -rf crash
	$(VENV)/bin/python tests/crashing.py crash

soak: $(VENV)/.installed
	$(VENV)/bin/python tests/soaking.py 600

# The quick tests with the oldest versions that setup.cfg allows, and with the newest of everything.
oldest:
	mkdir -p .venv-oldest
	sed -n '/^install_requires/,/^$$/s/^ *\([a-z0-9_-]*\)>=\(.*\)/\1==\2/p' setup.cfg > .venv-oldest/floors.txt
	$(MAKE) quick VENV=.venv-oldest CONSTRAINTS=.venv-oldest/floors.txt

newest:
	$(MAKE) quick VENV=.venv-newest CONSTRAINTS=

lint: $(VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(VENV)/bin/typos
	$(RUN) mypy

docs: $(VENV)/.installed
	$(RUN) sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(VENV)/.installed
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest demo fuzz crash build dist docs/_build *.egg-info
