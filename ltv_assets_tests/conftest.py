"""Shared pieces of the tests: a project in a folder of its own, and simulated data made once per session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
os.environ.setdefault("MPLBACKEND", "Agg")

PROJECT = Path(__file__).resolve().parent.parent
VARIABLES = ("LTV_CONFIG", "LTV_DATA_ROOT", "LTV_WAREHOUSE", "LTV_TODAY", "MLFLOW_TRACKING_URI", "DAGSTER_HOME")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of the shell it was started from."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def simulated_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training days and one test day, a few dozen rows an hour: enough for the graph, not for quality."""
    from ltv_assets.simulator import simulate

    root = tmp_path_factory.mktemp("simulated")
    simulate(root, train_days=3, test_days=1, rows_per_hour=60, seed=3)
    return root


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Point the project at a data root and an own warehouse: ``place(data_root, config_text)``; returns the warehouse."""

    def point(data_root: Path | None = None, config: str | None = None) -> Path:
        warehouse = tmp_path / "warehouse"
        monkeypatch.setenv("LTV_WAREHOUSE", str(warehouse))
        if data_root is not None:
            monkeypatch.setenv("LTV_DATA_ROOT", str(data_root))
        if config is not None:
            file = tmp_path / "config.yaml"
            file.write_text(config)
            monkeypatch.setenv("LTV_CONFIG", str(file))
        return warehouse

    yield point
