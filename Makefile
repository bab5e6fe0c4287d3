# make demo   set up a virtual environment, then the main job end to end on a sample corpus
# make test   set up a virtual environment, then lint, types and tests
#             (JOBS= processes that run tests; SLOW=1 for those too that take more than a few seconds each)
# make venv   only the virtual environment (VENV= names the place, PYTHON= the interpreter)

PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= demo-out
JOBS ?= 2
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: venv demo test lint types check clean

venv: $(STAMP)

# An interrupted install leaves no stamp, so the next call does it again.
$(STAMP): pyproject.toml setup.py requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokkit needs Python 3.11 or newer; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[all,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c requirements.lock encodec
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/tokkit demo --out $(DEMO_OUT)

test: lint types check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy from the root would see only tokkit/: the three folders are one package, so they are laid out as one.
types: $(STAMP)
	rm -rf build/types && mkdir -p build/types/tokkit
	ln -s $(CURDIR)/tokkit/* build/types/tokkit/
	ln -s $(CURDIR)/pipelines build/types/tokkit/pipelines
	ln -s $(CURDIR)/cli build/types/tokkit/cli
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p tokkit

# Files of tests are shared out between processes; each of them uses one thread.
check: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(if $(SLOW),,-m "not slow")

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(DEMO_OUT)
