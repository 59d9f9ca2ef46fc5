"""The simulated distribution: published marginals, an oracle that is exact, and losses within their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import lightgbm as lgb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.simulator import LAWS, LawName, Simulator, attained_share, facts, oracle_metrics
from ltv_assets.simulator.columns import Impressions
from ltv_assets.simulator.laws import calibrate, draw_effects, scores
from ltv_assets.simulator.signals import SIGNALS, raw_signal, standardised
from ltv_assets.simulator.unforeseen import PATTERNS, RARE_BETWEEN, SATURATIONS, gap_terms, saturating_terms, shows, total_dose

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
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2, 3))])
@pytest.mark.parametrize("law", LAWS)
def test_losses_are_calibrated_at_the_default_size(law: LawName, seed: int) -> None:
    simulator = Simulator(seed=seed, law=law, rows_per_hour=600)
    for days in (range(6), range(7, 9)):
        hours = (FIRST + timedelta(days=d, hours=h) for d in days for h in range(24))
        found = oracle_metrics(pd.concat([simulator.hour(hour)[1].to_pandas() for hour in hours], ignore_index=True))
        assert 0.026 <= found["payer_rate"] <= 0.032
        assert 0.45 <= found["rmsle_zero"] <= 0.48
        assert 0.39 <= found["rmsle_oracle"] <= 0.42


UNFORESEEN: tuple[LawName, ...] = ("saturating", "rare", "gaps")


@dataclass(frozen=True)
class Sample:
    """Some hours of a law, and the truth of all their rows."""

    simulator: Simulator
    hours: list[Impressions]
    truth: pd.DataFrame

    @property
    def log(self) -> NDArray[np.float64]:
        return np.log1p(self.truth["revenue"].to_numpy())

    def loss(self, score: NDArray[np.float64]) -> float:
        """Mean squared error of a prediction of log1p(revenue)."""
        return float(np.mean((self.log - score) ** 2))

    def share(self, score: NDArray[np.float64]) -> float:
        """0 for the best constant, 1 for the oracle."""
        return attained_share(float(np.var(self.log)), self.loss(score), self.loss(self.truth["oracle_log"].to_numpy()))


@cache
def sample(law: LawName) -> Sample:
    """Sixteen hours of 4,800 rows from four days."""
    simulator = Simulator(seed=7, law=law, rows_per_hour=4_800)
    moments = [FIRST + timedelta(hours=h) for h in range(0, 96, 6)]
    truth = pd.concat([simulator.hour(moment)[1].to_pandas() for moment in moments], ignore_index=True)
    return Sample(simulator, [simulator.impressions(moment)[0] for moment in moments], truth)


def _observed_over_expected(chosen: NDArray[np.bool_], found: Sample, expected: NDArray[np.float64]) -> float:
    """Payers among the chosen rows by those that probabilities let expect."""
    return float((found.log[chosen] > 0).sum() / expected[chosen].sum())


def _without_its_terms(found: Sample) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability and E[log1p(revenue)] if the law were only what it shares with the others, calibrated anew."""
    law, parts = found.simulator.law, []
    for hour in found.hours:
        if law == "rare":
            parts.append(scores(hour, draw_effects(found.simulator.world), law))
            continue
        whole = scores(hour, found.simulator.effects, law)
        terms = saturating_terms(hour) if law == "saturating" else gap_terms(hour, standardised(hour))
        parts.append((whole[0] - terms[0], whole[1] - terms[1]))
    buy, spend = (np.concatenate(part) for part in zip(*parts, strict=True))
    constants = calibrate(buy, spend)
    p = constants.probability(buy)
    return p, p * constants.mean_log(spend)


@pytest.mark.parametrize("law", UNFORESEEN)
def test_purchases_follow_what_is_peculiar_to_the_law(law: LawName) -> None:
    """Whoever knows everything but the law's own terms attains clearly less than the oracle."""
    found = sample(law)
    assert found.share(_without_its_terms(found)[1]) <= 0.7


def test_second_reason_to_buy_adds_less_than_the_first() -> None:
    """Log-odds of paying rise with the doses of an effect, and by less at each step."""
    found, engagement = sample("saturating"), SATURATIONS[1]
    dose, payer = np.concatenate([total_dose(hour, engagement) for hour in found.hours]), found.log > 0
    rates = np.array([payer[(dose > low) & (dose <= low + 1.0)].mean() for low in (0.0, 1.0, 2.0, 3.0)])
    first, second, third = np.diff(np.log(rates / (1 - rates)))
    assert first > 1.3 * second > 1.3 * third > 0


def test_few_rare_levels_have_an_effect_and_the_others_have_none() -> None:
    found = sample("rare")
    expected = _without_its_terms(found)[0]
    plain = draw_effects(found.simulator.world).buy
    for column in ("advertiser_bundle", "dev_model", "dev_osv"):
        effect = found.simulator.effects.buy[column] - plain[column]
        codes = np.concatenate([hour.codes[column] for hour in found.hours])
        share = np.bincount(codes[codes >= 0], minlength=len(effect)) / len(codes)
        assert share[effect != 0].max() < 1.2 * RARE_BETWEEN[1]
        assert 0.02 <= share[effect != 0].sum() <= 0.45, column
        on_row = np.where(codes >= 0, effect[codes], 0.0)
        assert _observed_over_expected(on_row > 1, found, expected) > 1.7, column
        assert 0.75 <= _observed_over_expected(on_row == 0, found, expected) <= 1.2, column
        assert _observed_over_expected(on_row < -1, found, expected) < 0.6, column


def test_gaps_tell_who_buys() -> None:
    """Each pattern of gaps with a strong effect moves the payers' share its way, against what the columns' values say."""
    found = sample("gaps")
    expected = _without_its_terms(found)[0]
    for pattern in PATTERNS:
        chosen = np.concatenate([shows(hour, pattern) for hour in found.hours])
        if abs(pattern.buy) >= 0.7 and chosen.mean() > 0.05:
            ratio = _observed_over_expected(chosen, found, expected) / _observed_over_expected(~chosen, found, expected)
            assert ratio > 1.3 if pattern.buy > 0 else ratio < 0.75, pattern


@pytest.mark.parametrize("law", UNFORESEEN)
def test_plain_boosting_lies_between_constant_and_oracle(law: LawName) -> None:
    """A LightGBM like the pinned reference, taught on the first three days and asked on the fourth."""
    found = sample(law)
    columns = [{s.name: raw_signal(hour, s) for s in SIGNALS} | dict(hour.codes) for hour in found.hours]
    X = pd.concat(map(pd.DataFrame, columns), ignore_index=True)
    train = np.arange(len(X)) < 0.75 * len(X)
    data = lgb.Dataset(X[train], found.log[train], categorical_feature=["advertiser_bundle", "country", "dev_osv"])
    fixed = {"deterministic": True, "seed": 0, "num_threads": 1, "verbose": -1}
    booster = lgb.train({"objective": "l2", "num_leaves": 31, "learning_rate": 0.05, "min_data_in_leaf": 50, **fixed}, data, 100)
    later = Sample(found.simulator, [], found.truth[~train])
    assert 0.35 <= later.share(np.asarray(booster.predict(X[~train]))) <= 0.9


def test_levels_move_by_the_stated_standard_deviation_and_leave_the_impressions_alone() -> None:
    """Payer rates of 60 days against those of the same days without movement; the law's p says how far each day moved."""
    moving, still = Simulator(seed=5, rows_per_hour=400, level_sd=0.3, independent=True), Simulator(seed=5, rows_per_hour=400)
    moment = FIRST + timedelta(hours=12)
    drawn = [moving.level((moment + timedelta(days=d)).date()) for d in range(400)]
    assert np.mean(drawn) == pytest.approx(0.0, abs=0.045) and np.std(drawn) == pytest.approx(0.3, abs=0.035)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.15
    for d in range(3):
        (table, truth), (before, known) = (s.hour(moment + timedelta(days=d)) for s in (moving, still))
        assert table["row_id"].equals(before["row_id"]) and table["country"].equals(before["country"])
        odds = [np.log(p / (1 - p)) for p in (truth["p"].to_numpy(), known["p"].to_numpy())]
        assert odds[0] - odds[1] == pytest.approx(np.full(len(odds[0]), drawn[d]))


def test_independent_labels_scatter_as_the_law_says_and_spread_ones_do_not() -> None:
    """Payers of 150 hours around the sum of p, in units of binomial noise."""

    def scatter(simulator: Simulator) -> float:
        found = []
        for h in range(150):
            truth = simulator.hour(FIRST + timedelta(hours=h))[1]
            p, payer = truth["p"].to_numpy(), truth["revenue"].to_numpy() > 0
            found.append((payer.sum() - p.sum()) / np.sqrt(np.sum(p * (1 - p))))
        return float(np.std(found))

    assert scatter(Simulator(seed=6, rows_per_hour=300, independent=True)) == pytest.approx(1.0, abs=0.2)
    assert scatter(Simulator(seed=6, rows_per_hour=300)) < 0.25
