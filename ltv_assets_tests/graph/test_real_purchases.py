"""The whole job on real purchases, unchanged, whenever they are on the machine (``LTV_REAL_DATA``)."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from ltv_assets_tests.conftest import PROJECT, made_once
from ltv_assets_tests.graph.conftest import command, environment

FLAT = PROJECT.parent / "shared/data/cdnow_flat"
FLAT_TRUTH = PROJECT.parent / "shared/data/cdnow_flat_truth/test.parquet"
REAL = Path(os.environ.get("LTV_REAL_DATA", PROJECT.parent / "shared/data/cdnow"))
CONSTANT_RMSLE = 0.5142
LARGEST_RMSLE = 0.4960
"""One LightGBM on log1p(revenue) has .4963."""
LEAST_CAPTURE = 0.56
LARGEST_DIFFERENCE = 0.002
"""In RMSLE, between two forms of the same customers and weeks."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not REAL.is_dir(), reason=f"no real purchases at {REAL}; set LTV_REAL_DATA to a folder with train/, test/ and truth/"
    ),
]


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Predictions of the test days beside what these customers really spent."""

    def make(folder: Path) -> None:
        done = command("ltv", "run", env=environment(REAL, folder / "warehouse", LTV_CONFIG="config/config_test.yaml"))
        assert done.returncode == 0, done.stderr

    return beside_the_truth(made_once(tmp_path_factory, "real", make) / "warehouse", REAL / "truth/test.parquet", "row_id")


@pytest.fixture(scope="session")
def scored_flat(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The same customers and weeks in columns of their own, from `ltv init` on and without an edit."""

    def make(folder: Path) -> None:
        env = environment(None, folder / "warehouse", LTV_CONFIG=str(folder / "config" / "config.yaml"))
        for words in (("init", "--data", str(FLAT), "--out", str(folder / "config")), ("run",)):
            done = command("ltv", *words, env=env)
            assert done.returncode == 0, done.stderr

    return beside_the_truth(made_once(tmp_path_factory, "real-flat", make) / "warehouse", FLAT_TRUTH, "customer_week")


def beside_the_truth(warehouse: Path, truth: Path, identifier: str) -> pd.DataFrame:
    with duckdb.connect(str(warehouse / "ltv.duckdb"), read_only=True) as connection:
        return connection.execute(
            f"SELECT predictions.*, truth.revenue FROM predictions JOIN read_parquet(?) truth ON predictions.row_id = truth.{identifier}",
            [str(truth)],
        ).fetch_df()


def rmsle(prediction: np.ndarray, revenue: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.log1p(prediction) - np.log1p(revenue)) ** 2)))


def test_real_spend_is_predicted_better_than_by_a_constant_or_one_lightgbm(scored) -> None:
    revenue = scored["revenue"].to_numpy()
    ungated = rmsle(scored["ltv_d7"].to_numpy(), revenue)
    gated = rmsle(scored["iap_revenue_d7"].to_numpy(), revenue)
    top = np.argsort(-scored["ltv_d7"].to_numpy(), kind="stable")[: len(scored) // 10]
    capture = revenue[top].sum() / revenue.sum()
    print(f"rows {len(scored)}, RMSLE ltv_d7 {ungated:.5f}, gated {gated:.5f}, top-10 % capture {capture:.3f}")
    assert len(scored) == 47_140
    assert ungated < CONSTANT_RMSLE
    assert ungated <= LARGEST_RMSLE
    assert capture >= LEAST_CAPTURE


def test_horizons_are_ordered_for_every_real_row(scored) -> None:
    assert (scored["ltv_d7"] <= scored["ltv_d14"]).all()
    assert (scored["ltv_d14"] <= scored["ltv_d28"]).all()


@pytest.mark.skipif(not FLAT.is_dir(), reason=f"no real purchases at {FLAT}")
def test_the_flat_form_of_real_purchases_is_predicted_as_well_as_the_nested_one(scored, scored_flat) -> None:
    nested, flat = (rmsle(found["ltv_d7"].to_numpy(), found["revenue"].to_numpy()) for found in (scored, scored_flat))
    print(f"rows {len(scored_flat)}, RMSLE nested {nested:.5f}, flat {flat:.5f}")
    assert len(scored_flat) == len(scored)
    assert flat <= nested + LARGEST_DIFFERENCE
    assert (scored_flat["ltv_d7"] <= scored_flat["ltv_d14"]).all() and (scored_flat["ltv_d14"] <= scored_flat["ltv_d28"]).all()
