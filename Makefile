# `make music` and `make test` work in a fresh clone: both create .venv first.
# With a GPU: install the torch build for your CUDA version into .venv, then add CONSTRAINTS= to the command.
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
PROMPT ?= calm solo piano ballad in C major, slow tempo

.PHONY: music test lint

music: $(VENV)/.installed
	$(VENV)/bin/qamdt generate "$(PROMPT)" --quality high --seconds 10 --seed 0 -o music.wav

test: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@
