# Two commands for a newcomer: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ZOO := models/zoo/fashion-stl.pt
RASTER := models/zoo/fashion-mnist-test500.npz

.DEFAULT_GOAL := help
.PHONY: help demo test check lowest format clean

help:
	@echo "make demo    set up, export the shipped model for Loihi and simulate it on shipped data"
	@echo "make test    set up and run the tests"
	@echo "make check   format, lint and type checks, then the tests"
	@echo "make lowest  try the lowest versions of all packages that pyproject.toml allows"
	@echo "make format  let ruff format the sources"
	@echo "make clean   remove the environment and everything built"

# The versions of constraints.txt keep the set-up reproducible and torch free of CUDA where a CPU
# build of it is at hand.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12 ..."; exit 2; }
	@echo "Setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.run
	@mkdir -p build
	$(BIN)/stl-export $(ZOO) --target loihi --eval $(RASTER) -o build/demo --force
	$(BIN)/hw_sim build/demo/model.nir --input $(RASTER)
	@echo "report: $(CURDIR)/build/demo/report.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n auto

lowest: $(VENV)/.run
	.ci/lowest

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
