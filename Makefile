# The commands of the project.  Debian's packages git, make, python3 and python3-venv are all they need;
# everything is installed into .venv.  `make PYTHON=python3.12 …` takes another Python.
.POSIX:
.PHONY: help install demo test lint bench image image-lock labextension labextension-test docs clean

PYTHON = python3
PYTEST_ARGS = -n 2 --dist loadfile
VARIANT = gpu
BENCH = [a-z]*
NOTEBOOKS =
INSTALL = PYTHON='$(PYTHON)' sh scripts/install.sh
BIN = .venv/bin

help:
	@echo 'make install   make .venv and install the hub, its proxy, JupyterLab and what the backend of the demo needs'
	@echo 'make demo      install, then run the hub on http://127.0.0.1:8000 (GPUPOOL_BACKEND=docker for containers)'
	@echo 'make test      install what the tests need, and run them all (PYTEST_ARGS="-k queue" for some)'
	@echo 'make lint      the checkers: ruff, mypy, import contracts, codespell'
	@echo 'make bench     the figures, as tables (BENCH=month for one; NOTEBOOKS=PATH: a trace for the month)'
	@echo 'make image     build the TensorFlow image with the Docker Engine (VARIANT=cpu without CUDA, BASE=… on another base)'
	@echo 'make labextension  build the JupyterLab extension anew from labextension/ (needs node and npm; the result is committed)'
	@echo 'make docs      write the generated pages in docs/'
	@echo 'make clean     remove .venv and caches (the state in .gpupool stays)'

install:
	@$(INSTALL) hub backend

demo:
	@$(INSTALL) -l 'Starting the hub (Ctrl-C stops it)' hub backend
	@exec $(BIN)/python -m jupyterhub -f jupyterhub_config.py

test:
	@$(INSTALL) hub demo docker nvidia test
	@command -v chromium >/dev/null || \
	    echo "gpupool: the browser tests are skipped: they need Debian's package chromium (apt-get install chromium)." >&2
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
	    echo "gpupool: the ledger is not tested on PostgreSQL: that needs Debian's package postgresql." >&2
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint:
	@$(INSTALL) hub dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

# One that fails does not keep the others from being run.  2: what it needs is not on this machine, and it has said so.
bench:
	@$(INSTALL) hub demo docker nvidia test
	@failed=0; for file in benchmarks/$(BENCH).py; do \
	    set --; [ "$$file" != benchmarks/month.py ] || [ -z '$(NOTEBOOKS)' ] || set -- '$(NOTEBOOKS)'; \
	    echo "== $$file"; $(BIN)/python "$$file" "$$@" || [ $$? -eq 2 ] || failed=1; \
	done; exit $$failed

# The image's lock files alone pin what is in it: nothing of .venv goes into it.
image:
	@VARIANT='$(VARIANT)' BASE='$(BASE)' TAG='$(TAG)' BUILD_ARGS='$(BUILD_ARGS)' sh scripts/image.sh build

image-lock:
	@$(INSTALL) dev
	@PATH="$$(pwd)/$(BIN):$$PATH" LOCK_ARGS='$(LOCK_ARGS)' sh scripts/image.sh lock

# Only who changes labextension/ needs these two, and Debian's packages nodejs and npm for them.
labextension:
	@cd labextension && npm ci --no-audit --no-fund && npm run build
	@$(PYTHON) scripts/labextension.py

labextension-test:
	@cd labextension && npm ci --no-audit --no-fund && npm test
	@$(PYTHON) scripts/labextension.py --check

docs:
	@$(INSTALL) hub docker
	@$(BIN)/python scripts/docs.py

clean:
	rm -rf .venv build dist *.egg-info labextension/node_modules labextension/lib labextension/build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find jupyterhub_gpupool tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
