"""The simulated distribution: published marginals, an oracle that is exact, and losses within their bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.simulator import LAWS, LawName, Simulator, facts, oracle_metrics

FIRST = datetime(2025, 10, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def day() -> tuple[pa.Table, pd.DataFrame]:
    """One day of 120,000 impressions with its truth."""
    simulator = Simulator(seed=2, law="additive", rows_per_hour=5_000)
    parts = [simulator.hour(FIRST + timedelta(hours=h)) for h in range(24)]
    tables = pa.concat_tables([table for table, _ in parts], promote_options="none").unify_dictionaries()
    return tables, pd.concat([truth.to_pandas() for _, truth in parts], ignore_index=True)


def test_missing_shares_are_the_published_ones(day: tuple[pa.Table, pd.DataFrame]) -> None:
    table, _ = day
    for column in RAW_COLUMNS:
        if column.name != "datetime":
            share = table[column.name].null_count / len(table)
            error = np.sqrt(column.missing_rate * (1 - column.missing_rate) / len(table))
            assert abs(share - column.missing_rate) <= 4.5 * error, column.name


def test_category_country_and_distinct_counts_are_the_published_ones(day: tuple[pa.Table, pd.DataFrame]) -> None:
    table, _ = day
    for column, rates, whole in (("advertiser_category", facts.CATEGORIES, 1.0), ("country", facts.COUNTRIES, facts.NAMED_COUNTRY_SHARE)):
        found = table[column].to_pandas().value_counts(normalize=True)
        rows = sum(rate.rows for rate in rates.values())
        for name, rate in list(rates.items())[:8]:
            assert found[name] == pytest.approx(whole * rate.rows / rows, rel=0.12), name
    for column, expected in facts.DISTINCT.items():
        distinct = table[column].to_pandas().nunique()
        assert 0.5 * expected <= distinct <= expected, column


def test_list_lengths_are_heavy_tailed(day: tuple[pa.Table, pd.DataFrame]) -> None:
    lengths = pd.Series([len(apps) for apps in table_column(day, "user_bundles") if apps is not None])
    assert lengths.max() > 15 * lengths.median() and lengths.mean() > 1.3 * lengths.median()


def table_column(day: tuple[pa.Table, pd.DataFrame], name: str) -> list[list[str] | None]:
    column: list[list[str] | None] = day[0][name].to_pylist()
    return column


def test_payers_look_like_the_published_ones(day: tuple[pa.Table, pd.DataFrame]) -> None:
    table, _ = day
    revenue, buyer = table["iap_revenue_d7"].to_numpy(), table["buyer_d7"].to_numpy()
    paid = revenue[revenue > 0]
    assert 0.026 <= len(paid) / len(revenue) <= 0.032
    assert 0.08 <= 1 - len(paid) / buyer.sum() <= 0.14
    assert 4.5 <= np.median(paid) <= 9.0
    assert 20.0 <= np.minimum(paid, 5_000).mean() <= 120.0
    assert paid.max() > 3_000
    assert np.log1p(paid).mean() == pytest.approx(facts.PAYER_MEAN_LOG, abs=0.15)


def test_better_known_categories_buy_more(day: tuple[pa.Table, pd.DataFrame]) -> None:
    table, truth = day
    p = truth["p"].groupby(table["country"].to_pandas()).mean()
    rate = pd.Series({name: rate.buyer_rate for name, rate in facts.COUNTRIES.items()})
    assert p[rate.index[:20]].corr(rate[:20], method="spearman") > 0.7


@pytest.mark.parametrize("law", LAWS)
def test_oracle_is_the_conditional_mean(law: LawName) -> None:
    """In every bin of the oracle the mean of log1p(revenue) is the oracle's, within chance, and the slope on it is 1."""
    simulator = Simulator(seed=11, law=law, rows_per_hour=16_000)
    truth = pd.concat([simulator.hour(FIRST + timedelta(hours=h))[1].to_pandas() for h in range(0, 24, 2)], ignore_index=True)
    for revenue, oracle in (("revenue", "oracle_log"), ("revenue_d14", "oracle_log_d14"), ("revenue_d28", "oracle_log_d28")):
        log, expected = np.log1p(truth[revenue].to_numpy()), truth[oracle].to_numpy()
        bins = pd.qcut(expected, [0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997, 1], labels=False)
        for chosen in (bins == k for k in range(10)):
            error = (log - expected)[chosen]
            assert abs(error.mean()) <= 4 * error.std() / np.sqrt(len(error)), (revenue, expected[chosen].mean(), log[chosen].mean())
        centred = expected - expected.mean()
        slope = centred @ log / (centred @ centred)
        spread = np.sqrt(centred**2 @ (log - expected) ** 2) / (centred @ centred)
        assert abs(slope - 1) <= 4 * spread and spread < 0.03, revenue
    payer, p = truth["revenue"].to_numpy() > 0, truth["p"].to_numpy()
    for chosen in (pd.qcut(p, 20, labels=False) == k for k in range(20)):
        assert abs(payer[chosen].mean() - p[chosen].mean()) <= 4 * np.sqrt(np.mean(p[chosen] * (1 - p[chosen])) / chosen.sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("law", LAWS)
def test_losses_are_calibrated_at_the_default_size(law: LawName, seed: int) -> None:
    simulator = Simulator(seed=seed, law=law, rows_per_hour=600)
    for days in (range(6), range(7, 9)):
        hours = (FIRST + timedelta(days=d, hours=h) for d in days for h in range(24))
        found = oracle_metrics(pd.concat([simulator.hour(hour)[1].to_pandas() for hour in hours], ignore_index=True))
        assert 0.026 <= found["payer_rate"] <= 0.032
        assert 0.45 <= found["rmsle_zero"] <= 0.48
        assert 0.39 <= found["rmsle_oracle"] <= 0.42
