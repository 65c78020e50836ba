# The commands of the project.  Debian's packages git, make, python3 and python3-venv are all they need;
# everything is installed into .venv.  `make PYTHON=python3.12 …` takes another Python.
.POSIX:
.PHONY: help install demo test lint bench docs clean

PYTHON = python3
PYTEST_ARGS = -n 2 --dist loadfile
INSTALL = PYTHON='$(PYTHON)' sh scripts/install.sh
BIN = .venv/bin

help:
	@echo 'make install   make .venv and install the hub, its proxy, JupyterLab and TensorFlow'
	@echo 'make demo      install, then run the hub on http://127.0.0.1:8000 (Ctrl-C stops it)'
	@echo 'make test      install what the tests need, and run them all (PYTEST_ARGS="-k queue" for some)'
	@echo 'make lint      the checkers: ruff, mypy, import contracts, codespell'
	@echo 'make bench     the figures, as tables'
	@echo 'make docs      write the generated pages in docs/'
	@echo 'make clean     remove .venv and caches (the state in .gpupool stays)'

install:
	@$(INSTALL) hub demo

demo:
	@$(INSTALL) -n 4 hub demo
	@echo '[4/4] Starting the hub (Ctrl-C stops it)'
	@exec $(BIN)/python -m jupyterhub -f jupyterhub_config.py

test:
	@$(INSTALL) hub demo test
	@command -v chromium >/dev/null || \
	    echo "gpupool: the browser tests are skipped: they need Debian's package chromium (apt-get install chromium)." >&2
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint:
	@$(INSTALL) hub dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

bench:
	@$(INSTALL) hub
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit; done

docs:
	@$(INSTALL) hub
	@$(BIN)/python scripts/docs.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find jupyterhub_gpupool tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
