# make demo   a .venv with pinned versions, the quickstart executed on the embedded model, its outputs in the terminal
# make lab    the quickstart in JupyterLab
# make test   every test that needs no GPU, the browser tests included
# make test-gpu   every test that needs a CUDA device; without a .venv: make test-gpu VENV= PYTHON=python3
# make check  format, lint, types

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo lab test test-gpu check unit clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp
	$(BIN)/python -m nbsgl demo

lab: .venv/demo.stamp
	$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

test: .venv/test.stamp check
	sh tests/notebook/install_browser.sh
	$(BIN)/python -m pytest tests/unit tests/sim -n 2
	$(BIN)/python -m pytest tests/kernels -n 2
	NBSGL_REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/process tests/notebook

# VENV= runs with PYTHON as it is, for machines where everything is installed already
VENV ?= .venv
test-gpu: $(if $(VENV),.venv/test.stamp)
	$(if $(VENV),$(BIN)/python,$(PYTHON)) -m pytest tests/gpu -q

unit: .venv/test.stamp
	$(BIN)/python -m pytest tests/unit -n 2

check: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nbsgl needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing nbsgl and what it needs into .venv (some minutes, once)"
	$(PIP) -e '.[lab]'
	@touch $@

.venv/test.stamp: .venv/demo.stamp
	@echo "installing what the tests need"
	$(PIP) -e '.[lab,test]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
