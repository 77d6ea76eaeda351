# Every command sets up what it needs in .venv first; nothing else has to be installed by hand.
# A torch that is in .venv already (a CUDA build, say) is kept.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS ?=
JOBS ?= 2

.PHONY: compare test pairs lint docs bench evidence wheel clean

compare: $(VENV)/.workbench  ## the main job: which technique helps?
	$(BIN)/wellposed compare $(ARGS)

test: $(VENV)/.test  ## all tests, with doc examples and the report in a browser
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

pairs: $(VENV)/.test  ## every two techniques together
	WELLPOSED_PAIRS=all $(BIN)/python -m pytest -n $(JOBS) tests/contract/test_pairs.py $(ARGS)

lint: $(VENV)/.lint  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site, into site/; warnings and dead links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.test  ## engine overhead, and each technique's cost beside its passes
	$(BIN)/python benchmarks/run.py

evidence: $(VENV)/.workbench  ## every claim again, on its frozen seeds
	$(BIN)/wellposed reproduce --all $(ARGS)

wheel: $(VENV)/.workbench  ## a wheel, into dist/
	$(PIP) build
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) dist site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "wellposed needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "python3 cannot make virtual environments: apt-get install python3-venv" >&2; exit 2; }

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "setting up $(VENV): torch" >&2; $(PIP) torch; }
	@touch $@

$(VENV)/.workbench $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: pyproject.toml $(VENV)/.torch
	@echo "setting up $(VENV): $*" >&2
	@$(PIP) --editable '.[$*]'
	@touch $@
