# Every target works from a fresh clone on a machine with Python 3.11+, make and a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export DS_BUILD_OPS := 0

.PHONY: install wheel demo checkpoint test test-slow test-faults lint bench docs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m navsim_adapter.metric.machine_code
	@touch $(INSTALLED)

# With the kernels compiled for this platform; elsewhere it compiles its own.
wheel: $(INSTALLED)
	$(BIN)/python -m navsim_adapter.metric.machine_code
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .

demo: $(INSTALLED)
	$(BIN)/dipole-vla demo --out $(or $(OUT),runs/demo) --seed $(or $(SEED),0)

checkpoint: $(INSTALLED)
	$(BIN)/python recipes/demo/reference/make.py $(or $(OUT),runs/checkpoint)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/scorer.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache
