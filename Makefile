# make help lists the targets. PYTHON=python3.12 picks the interpreter that .venv is made from.
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
READY := $(VENV)/.ready
UV := $(VENV)/bin/uv

# The pins alone decide what is installed: no settings file of the user's, no Python but the one named.
UV_ENV := UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never

PYTEST := $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Two processes of two threads each would wait for one another on two cores.
check test: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup check test browser soak soaktorchrun mutants lint lock demo bench bench-full bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]*:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the pinned dependencies

$(READY): requirements.txt build-constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || \
	    { echo "setup: $(PYTHON) is missing or not 3.10 to 3.14: name another, as in make PYTHON=python3.14 setup" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "setup: $(PYTHON) has no ensurepip: install its venv package (Debian: apt install python3-venv)" >&2; exit 2; }
	@if [ -x $(VENV)/bin/python ] && [ "$$($(PYTHON) -V)" != "$$($(VENV)/bin/python -V)" ]; then rm -rf $(VENV); fi
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV_ENV) $(UV) pip install --python $(VENV) --require-hashes -r requirements.txt --build-constraint build-constraints.txt
	$(UV_ENV) $(UV) pip install --quiet --python $(VENV) --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

check: setup lint  ## lint, types, import floors, mathematics and settings: before each commit
	$(PYTEST) -m 'not slow' tests/test_floors.py tests/models tests/golden tests/hparams

test: setup lint  ## lint, then every test
	$(PYTEST)

browser: setup  ## install what tests of the dashboard need: visdom's browser files (npm), chromium (apt, as root)
	@bash tests/install_dashboard_assets.sh $(VENV)/bin/python
	@bash tests/install_browser.sh

soak: setup  ## kill runs 100 times a stage, resume them, compare; watch their memory: some minutes
	$(VENV)/bin/python tests/soak.py

soaktorchrun: setup  ## the same for processes under torchrun, 20 times a stage
	$(VENV)/bin/python tests/soak_torchrun.py

mutants: setup  ## plant small mistakes one at a time, and see whether the tests notice
	$(VENV)/bin/python tests/mutants.py

demo: setup  ## train both stages on small painted churches and draw new ones
	$(VENV)/bin/python demo.py

bench: setup  ## compare with the published algorithm on the CPU, reduced, in ten minutes
	$(VENV)/bin/python -m benchmarks.run --scale cpu

bench-full: setup  ## the same at the published sizes, without a limit
	$(VENV)/bin/python -m benchmarks.run --scale full

bench-gpu: setup  ## the same on CUDA
	$(VENV)/bin/python -m benchmarks.run --scale gpu

lock: setup  ## pin the newest releases that pyproject.toml allows
	$(UV_ENV) $(UV) pip compile pyproject.toml --group dev --universal --python-version 3.10 --generate-hashes --upgrade \
	    --build-constraint build-constraints.txt --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" --output-file requirements.txt --quiet

clean:  ## remove .venv and the tools' caches; runs in logs/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
