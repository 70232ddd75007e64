# make demo: environment, installation, the embedded demo.   make test: environment, installation, every check.
# PYTHON chooses the interpreter (3.10 or later); CONSTRAINTS= installs the newest versions instead of the known-good set.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
RUN := $(VENV)/bin/python -m
# One thread a process: on models as tiny as those of the tests a second one only waits.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n 2

.PHONY: demo test quick fuzz crash soak oldest newest lint docs format clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/sensedict demo --output demo

test: lint docs
	$(PYTEST) --cov --cov-report=term

quick: $(VENV)/.installed
	$(PYTEST) -m "not slow"

fuzz: $(VENV)/.installed
	rm -rf fuzz
	$(VENV)/bin/python tests/fuzzing.py fuzz 2000

crash: $(VENV)/.installed
	rm -rf crash
	$(VENV)/bin/python tests/crashing.py crash

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
	rm -rf $(VENV) demo fuzz crash soak build dist docs/_build *.egg-info
