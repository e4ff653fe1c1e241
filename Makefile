# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench clean

demo: .venv/ready            ## export, verify, inspect and stream the shipped checkpoint
	$(BIN)/xlstm-edge demo

test: .venv/ready            ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: .venv/ready           ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready           ## speed and memory of the shipped checkpoint
	$(BIN)/xlstm-edge export examples/shakespeare -o demo-bundle --force
	$(BIN)/xlstm-edge bench demo-bundle --threads 1

# torch first and pinned: a range would take the newest build with several GB of CUDA libraries. The official packages
# are what the tests compare with; their own dependencies (notebooks, plotting, Triton) are not needed for that.
.venv/ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps xlstm==2.0.6 mlstm_kernels==2.0.6
	touch $@

clean:
	rm -rf .venv demo-bundle
