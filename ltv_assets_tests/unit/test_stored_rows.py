"""Rows that stay in the lake are the rows that would be in memory."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import ComputeConfig, Config
from ltv_assets.core.errors import TransientError
from ltv_assets.core.memory import columns_in_memory, flatten_threads, rows_in_memory
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.features.schema import feature_names
from ltv_assets.modeling.boosting import Trainer
from ltv_assets.modeling.dataset import RowStore
from ltv_assets.modeling.design_matrix import EncodedFile, Matrix
from ltv_assets.training.stored_rows import read_rows
from ltv_assets.training.windows import affordable
from ltv_assets_tests.oracle.awkward_rows import awkward_rows, write_hour


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(Path(__file__).parents[2] / "config" / "features.yaml")


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, list[Path]]:
    """Two flattened days in row groups of 70 rows, whose categories differ from group to group."""
    folder, days = tmp_path_factory.mktemp("lake"), {}
    for number in (1, 2):
        hour = f"2025-10-0{number}-05-00"
        raw, out = folder / f"datetime={hour}" / "part-0.parquet", folder / f"day-{number}.parquet"
        write_hour(awkward_rows(150 + number, number, 1759294800 + 86_400 * (number - 1)), raw)
        flatten_files([RawFile(raw, hour)], registry=registry, labelled=True, out=out)
        pq.write_table(pq.read_table(out), out, row_group_size=70)
        days[PartitionKey(f"2025-10-0{number}")] = [out]
    return days


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype(dict.fromkeys(frame.select_dtypes("category"), object)).reset_index(drop=True)


@pytest.mark.contest
def test_stored_rows_are_the_rows_in_memory(days: dict[str, list[Path]], registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    features = feature_names(registry)
    here = read_rows(Config(), days, features)
    monkeypatch.setattr("ltv_assets.training.stored_rows.rows_in_memory", lambda compute, features: 100)
    monkeypatch.setattr("ltv_assets.modeling.dataset.BLOCK_ROWS", 64)
    there = read_rows(Config(), days, features)
    assert isinstance(here.X, pd.DataFrame) and isinstance(there.X, RowStore)
    assert len(there.X) == len(here.X) and list(there.X.columns) == features
    assert here.row_id.equals(there.row_id)
    for name in ("day", "hour"):
        assert (getattr(here, name) == getattr(there, name)).all()
    pd.testing.assert_frame_equal(here.revenue, there.revenue)
    n = len(here.X)
    for low, high in ((0, 1), (0, 70), (60, 150), (69, 71), (140, 155), (n - 1, n), (0, n)):
        pd.testing.assert_frame_equal(plain(there.X.read(low, high)), plain(here.X.iloc[low:high]))
    rows = np.flatnonzero(np.arange(n) % 5 == 2)
    pd.testing.assert_frame_equal(plain(there.X.take(rows)), plain(here.X.iloc[rows]))
    pd.testing.assert_frame_equal(plain(there.X.select(["country", "cpm__sum"])), plain(here.X[["country", "cpm__sum"]]))
    assert there.X.get("no such column") is None and "country" in there.X


def test_a_budget_bounds_rows_blocks_and_duckdb() -> None:
    small, large = ComputeConfig(max_memory_gb=1.0, threads=8), ComputeConfig(max_memory_gb=64.0, threads=8)
    assert (flatten_threads(small), flatten_threads(large)) == (1, 8)
    assert (small.duckdb_limit, large.duckdb_limit) == ("0.5GB", "1.0GB")
    assert rows_in_memory(large, 400) == pytest.approx(64 * rows_in_memory(small, 400), rel=1e-3)
    assert rows_in_memory(small, 400) * 400 * 4 * 6 <= 0.5e9
    assert columns_in_memory(large, 10**7) == 64 * columns_in_memory(small, 10**7)


def test_a_large_window_gives_up_zeros_for_columns_and_columns_only_if_it_may_not() -> None:
    config = Config(models={"max_features": 200}, compute={"max_memory_gb": 4.0})
    assert affordable(config, 384, 1_000_000).max_features == 200
    assert affordable(Config(), 384, 1_000_000).max_features > 384
    for memory, rows in ((4.0, 2_000_000), (1.0, 558_000)):
        drawn = affordable(Config(models={"zero_budget_rows": 2_000_000}, compute={"max_memory_gb": memory}), 384, 20_000_000)
        assert drawn.max_features >= 384 * 7 // 6
        assert drawn.zero_budget_rows == pytest.approx(rows, rel=0.01)
    natural = Config(models={"max_features": 200, "zero_budget_rows": None}, compute={"max_memory_gb": 4.0})
    assert affordable(natural, 384, 10_000_000).max_features == 100


def test_encoded_rows_come_back_from_the_file_and_a_full_disk_is_named(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    kept = EncodedFile(3, tmp_path)
    for low in (0, 7, 14):
        kept.append(rows[low : low + 7])
    np.testing.assert_array_equal(kept.rows(5, 16), rows[5:16])
    assert not list(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(TransientError, match="no room for the window's encoded rows"):
            kept.append(np.zeros((1000, 3), np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_bins_that_were_given_up_are_found_again() -> None:
    values = np.random.default_rng(5).standard_normal((400, 3)).astype(np.float32)
    matrix, trainer = Matrix(values, ("a", "b", "c"), ()), Trainer(seed=1, threads=1)

    def trees() -> str:
        return trainer.train(matrix, values[:, 1].astype(np.float64), {"objective": "regression"}, 5).text

    first, bins = trees(), matrix.binned()
    assert matrix.binned() is bins
    matrix.forget_bins()
    assert trees() == first
    assert matrix.binned() is not bins


def test_assets_of_one_run_share_what_is_kept_and_two_runs_do_not() -> None:
    from ltv_assets.defs.resources import ProjectResource

    run, other = ProjectResource(config_file=None), ProjectResource(config_file=None)
    run.open().kept["rows"] = 1
    assert run.open().kept == {"rows": 1} and other.open().kept == {}
