# make demo: environment, installation, the embedded demo.   make test: environment, installation, tests.
# PYTHON chooses the interpreter (3.10 or later); CONSTRAINTS= installs the newest versions instead of the known-good set.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv

.PHONY: demo test lint clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/sensedict demo --output demo

test: $(VENV)/.installed
	$(VENV)/bin/python -m ruff check sensedict_hf tests examples benchmarks
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean:
	rm -rf $(VENV) demo build *.egg-info
