# Every target calls `install`, so a fresh clone needs nothing but Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SIMULATED := $(or $(LTV_WAREHOUSE),warehouse)/simulated

.PHONY: install demo test test-contract test-fast test-soak bench-check check lint types clean

install: $(STAMP)

# uv installs many times faster than pip and is itself installed by pip, into the same place; it is told of pip's own index, if there
# is one. Where uv is not to be had, or fails, pip does the same.
EDITABLE := --no-deps --no-build-isolation -e ".[dev,dask,tune]"
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLING = installing
demo: INSTALLING = 1/3 installing

$(STAMP): pyproject.toml requirements.lock
	@echo "$(INSTALLING) $$(grep -c == requirements.lock) packages into $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@index=$$($(PIP) config get global.index-url 2>/dev/null) || index=; index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$index}}; \
	  if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	  uv="$(BIN)/python -m uv --quiet pip install --python $(BIN)/python"; \
	  if $(PIP) install --quiet --quiet uv 2>/dev/null && $$uv --no-deps -r requirements.lock 2>/dev/null && $$uv $(EDITABLE) 2>/dev/null; then :; else \
	    echo "uv could not install; pip does, in about a minute"; \
	    $(PIP) install --quiet --quiet --no-deps -r requirements.lock && $(PIP) install --quiet --quiet $(EDITABLE); \
	  fi
	@grep -q DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME $(BIN)/activate || \
	  printf '\n# lets `dagster asset materialize` find this project\nexport DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME=ltv_assets.definitions\nexport DAGSTER_DISABLE_TELEMETRY=yes\n' >> $(BIN)/activate
	@touch $(STAMP)

demo: install  ## simulated data, the whole graph, the table of metrics
	@echo "1/3 installed in $(VENV)"
	@if test -f $(SIMULATED)/truth/law.json; then echo "2/3 simulated already, in $(SIMULATED)"; else \
	  echo "2/3 simulating into $(SIMULATED)"; $(BIN)/ltv simulate --out $(SIMULATED); fi
	@echo "3/3 running what is not fresh"
	@LTV_CONFIG= LTV_DATA_ROOT= $(BIN)/ltv run
	@echo
	@echo "where to look next:"
	@echo "  source $(BIN)/activate"
	@echo "  ltv status                                every partition and its state"
	@echo "  ltv dashboard                             what the newest days will bring, and where the money is, on http://127.0.0.1:8501"
	@echo "  dagster dev                               the asset graph, with pictures and checks, on http://127.0.0.1:3000"
	@echo "  mlflow ui --backend-store-uri sqlite:///$(or $(LTV_WAREHOUSE),warehouse)/mlflow.db   runs to compare"

test: install  ## the whole test suite, as CI runs it; what needs a real daemon, server or browser comes last, one file in each process, with the run of before
	@$(MAKE) --no-print-directory test-contract
	@root=$$($(BIN)/python -c "from ltv_assets_tests.conftest import temporary_root; print(temporary_root())") && \
	  LTV_TESTS_SHARED=$$(mktemp -d "$$root/ltv-tests-XXXXXX") && export LTV_TESTS_SHARED && trap 'rm -rf "$$LTV_TESTS_SHARED"' EXIT && \
	  $(BIN)/python -m pytest -q -n 2 --dist worksteal --ignore=ltv_assets_tests/live && \
	  $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder ltv_assets_tests/live

test-contract: install  ## what holds under any contract, in a copy of the project with that of a shop in place
	@$(BIN)/python -m ltv_assets_tests.other_contract shop -q -n 2 --dist worksteal

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
