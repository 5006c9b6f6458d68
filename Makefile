# make demo   the main job on the embedded default: two to three minutes on two cores after installation
# make test   the tests, offline after installation
# make notebooks   runs the notebooks, offline after installation: about a minute each on two cores
# make lint   style and formatting;  make types   mypy;  make clean   forget the environment
# PIP_ARGS passes options to pip, for example an index of your choice: make test PIP_ARGS="--index-url https://…"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=

.PHONY: demo test notebooks lint types clean

demo: $(VENV)/.base
	$(BIN)/adapter-unlearn demo --output_dir runs/demo --overwrite

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

# One at a time, on one thread: two stall each other on a busy machine. A cell has 600 seconds. The kernel is this
# environment's, whatever kernels the user has. Nothing is saved: $(BIN)/python notebooks/save.py does that.
notebooks: $(VENV)/.dev
	OMP_NUM_THREADS=1 JUPYTER_PREFER_ENV_PATH=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -n 0 notebooks $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "adapter-unlearn needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing; install it (Debian and Ubuntu: apt install python3-venv) and run make again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	@touch $@ $(VENV)/.base
