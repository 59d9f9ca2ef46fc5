# Every target calls `install`, so a fresh clone needs nothing but Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SIMULATED := $(or $(LTV_WAREHOUSE),warehouse)/simulated

.PHONY: install demo test test-fast test-soak bench-check check lint types clean

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation -e ".[dev,dask,tune]"
	@grep -q DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME $(BIN)/activate || \
	  printf '\n# lets `dagster asset materialize` find this project\nexport DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME=ltv_assets.definitions\nexport DAGSTER_DISABLE_TELEMETRY=yes\n' >> $(BIN)/activate
	@touch $(STAMP)

demo: install  ## simulated data, the whole graph, the table of metrics
	@test -f $(SIMULATED)/truth/law.json || $(BIN)/ltv simulate --out $(SIMULATED)
	@LTV_CONFIG= LTV_DATA_ROOT= $(BIN)/ltv run
	@echo
	@echo "where to look next:"
	@echo "  source $(BIN)/activate"
	@echo "  ltv status                                every partition and its state"
	@echo "  dagster dev                               the asset graph, with pictures and checks, on http://127.0.0.1:3000"
	@echo "  mlflow ui --backend-store-uri sqlite:///$(or $(LTV_WAREHOUSE),warehouse)/mlflow.db   runs to compare"

test: install  ## the whole test suite, as CI runs it; the tests with a real daemon and browser have the machine to themselves
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal --ignore=ltv_assets_tests/live
	@$(BIN)/python -m pytest -q ltv_assets_tests/live

test-fast: install  ## only what takes seconds
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not soak"

test-soak: install  ## what takes longer than CI allows
	@$(BIN)/python -m pytest -q -m soak -o timeout=0

bench-check: install  ## speed of every stage against a baseline of the same run; fails if a ratio fell by more than 20 %
	@$(BIN)/python benchmarks/check.py

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache

types: install
	@$(BIN)/mypy

check: lint types test  ## exactly what CI runs

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
