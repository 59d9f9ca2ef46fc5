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
EVERY_WEEK = 7
LARGEST_RMSLE = {3: 0.4970, EVERY_WEEK: 0.4960}
"""By the number of weeks before the holdout that train; one LightGBM on log1p(revenue) of every week has .4963."""
LEAST_CAPTURE = 0.56
SHOP_LIGHTGBM = 0.5093
LARGEST_DIFFERENCE = 0.002
"""In RMSLE, between two forms of the same customers and weeks."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not REAL.is_dir(), reason=f"no real purchases at {REAL}; set LTV_REAL_DATA to a folder with train/, test/ and truth/"
    ),
]


@pytest.fixture(scope="session", params=[3, pytest.param(EVERY_WEEK, marks=pytest.mark.soak)])
def weeks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, weeks: int) -> pd.DataFrame:
    """Predictions of the test days beside what these customers really spent."""

    def make(folder: Path) -> None:
        config = folder / "config.yaml"
        config.write_text(f"windows: {{min_train_days: 2, max_train_days: {weeks}}}\n")
        done = command("ltv", "run", env=environment(REAL, folder / "warehouse", LTV_CONFIG=str(config)))
        assert done.returncode == 0, done.stderr

    return beside_the_truth(made_once(tmp_path_factory, f"real-{weeks}", make) / "warehouse", REAL / "truth/test.parquet", "row_id")


FLATTENED = """
COPY (
  WITH customers AS (
    SELECT row_id AS customer_week, epoch(strptime(datetime, '%Y-%m-%d-%H-00')) AS start, first_request_ts, last_buy, weekend_ratio,
      list_sum(map_values(num_buys_bundle)) AS orders, list_sum(map_values(iap_revenue_usd_bundle)) AS spend_usd,
      num_buys_category, iap_revenue_usd_category, whale_users_bundle_revenue_prank AS ranks {labels}
    FROM read_parquet(?, hive_partitioning = true, hive_types_autocast = false)
  )
  SELECT customer_week, orders, spend_usd, spend_usd / orders AS usd_an_order, (start - last_buy) / 86400 AS days_since_last,
    (start - first_request_ts) / 86400 AS tenure_days, weekend_ratio AS weekend_share, map_values(ranks)[1] AS spend_rank,
    num_buys_category['one disc'] AS small_orders, num_buys_category['two or three discs'] AS medium_orders,
    iap_revenue_usd_category['one disc'] AS small_usd, iap_revenue_usd_category['two or three discs'] AS medium_usd {revenue}
  FROM customers
) TO '{out}' (FORMAT parquet)
"""
LABELS = {"labels": ", iap_revenue_d7, iap_revenue_d14, iap_revenue_d28"} | {
    "revenue": ", iap_revenue_d7 AS revenue_7d, iap_revenue_d14 AS revenue_14d, iap_revenue_d28 AS revenue_28d"
}


def flatten_by_hand(out: Path) -> Path:
    """The nested form's customers and weeks as a shop would keep them: plain columns, daily folders, no map and no name of the contest."""
    with duckdb.connect() as connection:
        for hour in sorted(REAL.glob("t*/datetime=*")):
            folder = out / f"date={hour.name.removeprefix('datetime=')[:10]}"
            folder.mkdir(parents=True)
            chosen = LABELS if hour.parent.name == "train" else dict.fromkeys(LABELS, "")
            connection.execute(FLATTENED.format(out=folder / "part-0.parquet", **chosen), [f"{hour}/*.parquet"])
    return out


def scores_of_flat(folder: Path, data: Path, truth: Path, identifier: str) -> pd.DataFrame:
    """From `ltv init` on, without an edit."""
    env = environment(None, folder / "warehouse", LTV_CONFIG=str(folder / "config" / "config.yaml"))
    for words in (("init", "--data", str(data), "--out", str(folder / "config")), ("run",)):
        done = command("ltv", *words, env=env)
        assert done.returncode == 0, done.stderr
    return beside_the_truth(folder / "warehouse", truth, identifier)


def beside_the_truth(warehouse: Path, truth: Path, identifier: str) -> pd.DataFrame:
    with duckdb.connect(str(warehouse / "ltv.duckdb"), read_only=True) as connection:
        return connection.execute(
            f"SELECT predictions.*, truth.revenue FROM predictions JOIN read_parquet(?) truth ON predictions.row_id = truth.{identifier}",
            [str(truth)],
        ).fetch_df()


def rmsle(prediction: np.ndarray, revenue: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.log1p(prediction) - np.log1p(revenue)) ** 2)))


def test_real_spend_is_predicted_better_than_by_a_constant_or_one_lightgbm(scored: pd.DataFrame, weeks: int) -> None:
    revenue = scored["revenue"].to_numpy()
    ungated = rmsle(scored["ltv_d7"].to_numpy(), revenue)
    gated = rmsle(scored["iap_revenue_d7"].to_numpy(), revenue)
    top = np.argsort(-scored["ltv_d7"].to_numpy(), kind="stable")[: len(scored) // 10]
    capture = revenue[top].sum() / revenue.sum()
    print(f"rows {len(scored)}, RMSLE ltv_d7 {ungated:.5f}, gated {gated:.5f}, top-10 % capture {capture:.3f}")
    assert len(scored) == 47_140
    assert ungated < CONSTANT_RMSLE
    assert ungated <= LARGEST_RMSLE[weeks]
    assert capture >= LEAST_CAPTURE


def test_horizons_are_ordered_for_every_real_row(scored: pd.DataFrame) -> None:
    assert (scored["ltv_d7"] <= scored["ltv_d14"]).all()
    assert (scored["ltv_d14"] <= scored["ltv_d28"]).all()


@pytest.mark.soak
@pytest.mark.parametrize("weeks", [EVERY_WEEK], indirect=True)
def test_the_flat_form_of_the_same_weeks_is_predicted_as_well_as_the_nested_one(scored: pd.DataFrame, tmp_path: Path) -> None:
    flat = scores_of_flat(tmp_path, flatten_by_hand(tmp_path / "customers"), REAL / "truth/test.parquet", "row_id")
    errors = [rmsle(found["ltv_d7"].to_numpy(), found["revenue"].to_numpy()) for found in (scored, flat)]
    print(f"rows {len(flat)}, RMSLE nested {errors[0]:.5f}, flat {errors[1]:.5f}")
    assert sorted(flat["row_id"]) == sorted(scored["row_id"])
    assert abs(errors[1] - errors[0]) <= LARGEST_DIFFERENCE


@pytest.mark.skipif(not FLAT.is_dir(), reason=f"no real purchases at {FLAT}")
@pytest.mark.soak
def test_a_shops_own_form_of_real_purchases_is_predicted_nearly_as_well_as_by_one_lightgbm(tmp_path: Path) -> None:
    """Weeks six later than those of the nested form; ``SHOP_LIGHTGBM`` is one LightGBM on log1p(revenue) of the same columns."""
    found = scores_of_flat(tmp_path, FLAT, FLAT_TRUTH, "customer_week")
    error = rmsle(found["ltv_d7"].to_numpy(), found["revenue"].to_numpy())
    print(f"rows {len(found)}, RMSLE {error:.5f}")
    assert len(found) == 47_140
    assert error <= SHOP_LIGHTGBM + LARGEST_DIFFERENCE
    assert (found["ltv_d7"] <= found["ltv_d14"]).all() and (found["ltv_d14"] <= found["ltv_d28"]).all()
