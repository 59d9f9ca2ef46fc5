"""The whole job on real purchases, unchanged, whenever they are on the machine (``LTV_REAL_DATA``)."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import numpy as np
import pytest

from ltv_assets_tests.conftest import PROJECT
from ltv_assets_tests.graph.conftest import command, environment

REAL = Path(os.environ.get("LTV_REAL_DATA", PROJECT.parent / "shared/data/cdnow"))
CONSTANT_RMSLE = 0.5142
LARGEST_RMSLE = 0.4960
"""One LightGBM on log1p(revenue) has .4963."""
LEAST_CAPTURE = 0.56

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not REAL.is_dir(), reason=f"no real purchases at {REAL}; set LTV_REAL_DATA to a folder with train/, test/ and truth/"
    ),
]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory):
    """Predictions of the test days beside what these customers really spent."""
    warehouse = tmp_path_factory.mktemp("real") / "warehouse"
    done = command("ltv", "run", env=environment(REAL, warehouse, LTV_CONFIG="config/config_test.yaml"))
    assert done.returncode == 0, done.stderr
    with duckdb.connect(str(warehouse / "ltv.duckdb"), read_only=True) as connection:
        return connection.execute(
            "SELECT predictions.*, truth.revenue FROM predictions JOIN read_parquet(?) truth USING (row_id)",
            [str(REAL / "truth/test.parquet")],
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
