# The project's commands; `make` alone lists them. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-constraints
EXTRAS := dev,docs,bids,export,gpt2,cluster,loggers,browser
# wheels kept in a folder (a CPU build of torch, say): pip reads PIP_FIND_LINKS by itself, uv has to be told
LINKS = $(foreach link,$(PIP_FIND_LINKS),--find-links $(link))
# runs at a time that `make book` makes
JOBS ?= 2
# pytest's own options: make test ARGS='-k windows -x'
ARGS ?=

# threads that wait sleep instead of spinning: with other work on the machine that is up to ten times faster
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env book test check corpus report export docs lab pins clean distclean

help: ## this list
	@echo "semgbook: decoding keystrokes from surface EMG, as a book that runs"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  another Python: make PYTHON=python3.12 env        some tests: make test ARGS='-k windows'"

env: $(STAMP) ## make .venv with the versions of constraints.txt (every other target does it when needed)

$(STAMP): constraints.txt settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "semgbook needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) has no venv or pip (Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv is not to be had here; pip does the work, which takes longer"
	@{ test -x $(BIN)/uv && $(BIN)/uv pip install --python $(BIN)/python $(LINKS) -c constraints.txt -e '.[$(EXTRAS)]'; } || \
	  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

book: $(STAMP) ## write the embedded corpus, run the small suite through papermill, leave reports/report.html
	$(BIN)/semgbook synth embedded
	$(BIN)/semgbook book smoke --resume --jobs $(JOBS)

test: $(STAMP) ## every test, every notebook among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: $(STAMP) ## does the package equal the notebooks, and is every notebook clean? (part of make test)
	$(BIN)/python -m pytest tests/test_notebooks.py tests/test_architecture.py -k "not runs" $(ARGS)

corpus: $(STAMP) ## write the embedded synthetic corpus into data/synthetic
	$(BIN)/semgbook synth embedded

report: $(STAMP) ## read the run folders, write reports/report.html
	$(BIN)/semgbook report

export: $(STAMP) ## notebooks -> package semgbook and README.md, and clean the notebooks: after every edit
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python nbs/_site/readme.py

docs: $(STAMP) ## the documentation site, in _docs (QUARTO=1: rendered by Quarto, if it is on the PATH)
	OMP_NUM_THREADS=1 $(BIN)/python nbs/_site/build.py $(if $(QUARTO),--quarto)

lab: $(STAMP) ## JupyterLab at the notebooks
	$(BIN)/semgbook lab

pins: $(STAMP) ## resolve settings.ini anew into constraints.txt (keeps what still fits)
	cp constraints.txt $(VENV)/pins.txt
	$(BIN)/uv pip compile setup.py --refresh-package semgbook --all-extras --universal --python-version 3.10 --no-annotate --no-header --quiet $(LINKS) -o $(VENV)/pins.txt >/dev/null
	{ grep '^#' constraints.txt; grep -vE '^(#|nvidia|cuda|triton)' $(VENV)/pins.txt; } > $(VENV)/pinned.txt
	mv $(VENV)/pinned.txt constraints.txt

clean: ## remove what was built: site, report, caches (never runs, never data)
	rm -rf _docs _exec _prep _proc _pages build dist .pytest_cache .ruff_cache reports/report.html reports/report.ipynb reports/report.md reports/figures
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the environment and the synthetic corpus too (reports/runs and data/raw stay)
	rm -rf $(VENV) *.egg-info data/synthetic .semgbook-cache
