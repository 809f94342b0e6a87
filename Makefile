# Two commands, each from nothing: `make demo` shows the whole path, `make test` checks it.
# PYTHON: the interpreter to build the environment with (3.10 or newer). VENV: where to put it. TESTS: what to tell pytest.
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
DEMO ?= demo
INSTALLED = $(VENV)/.installed

.PHONY: demo test lint format architecture docs wheel clean

demo: $(INSTALLED)
	$(VENV)/bin/adedge demo --output $(DEMO)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=loadscope $(TESTS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	.ci/typecheck $(VENV)/bin/python
	$(VENV)/bin/python .ci/import-graph >/dev/null

format: $(INSTALLED)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

architecture: $(INSTALLED)
	$(VENV)/bin/python .ci/import-graph --drawing docs/images/architecture.svg >/dev/null

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet
	@echo "the site: site/index.html"

wheel: $(INSTALLED)
	rm -rf build dist
	$(VENV)/bin/python -m build
	.ci/test-wheel $(VENV)/bin/python

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "adedge needs Python 3.10 or newer, and $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@echo "installing adedge with PyTorch (several gigabytes, some minutes) ..."
	$(VENV)/bin/python -m pip install --quiet --progress-bar off --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --progress-bar off --editable '.[docs]'
	@touch $@

clean:
	rm -rf build dist site $(DEMO)
