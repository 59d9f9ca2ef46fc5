"""Whether forecasts of groups hold what they promise, on worlds whose law is known.

The statistical layer alone runs with CI: probabilities that are right but for the levels of days and groups, many windows. The whole of
it, simulated impressions, flattening, models and their out-of-fold errors, is run by hand (``-m soak``), on three laws and five seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import PROJECT_ROOT, SamplingConfig
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.modeling.cohorts import (
    CohortNoise,
    KnownRows,
    compared_by_day,
    inside,
    noise_of_level,
    out_of_fold_rows,
    with_intervals,
)
from ltv_assets.modeling.dataset import prepare_window
from ltv_assets.modeling.design_matrix import encode
from ltv_assets.modeling.folds import make_folds
from ltv_assets.modeling.levels import follow_level
from ltv_assets.modeling.stages import WindowContext, buyer_classifier, buyer_gating, revenue_regressor
from ltv_assets.simulator import Simulator
from ltv_assets_tests.model_world import SMALL

DAYS = 6
SIZES = {"min_rows": 100, "max_segments": 12}
LEVEL_SD = 0.15
CLASSES = {"few": (0.0, 10.0), "some": (10.0, 40.0), "many": (40.0, np.inf)}
"""Groups by expected payers."""


def judged(rows: KnownRows, noise: CohortNoise, cap_usd: float, ahead: int, **named: object) -> pd.DataFrame:
    """Forecast of a day and whether it held; ``relative``: width of the payers' interval over what was expected."""
    compared = rows.compared(noise.amounts, cap_usd, **SIZES)
    found = compared.join(with_intervals(compared, noise, ahead)[["payers_low", "payers_high", "revenue_low_usd", "revenue_high_usd"]])
    found["relative"] = (found["payers_high"] - found["payers_low"]) / found["expected_payers"]
    return found.join(inside(found)).assign(**named)


def shares(found: pd.DataFrame) -> pd.DataFrame:
    """Coverage, width and number of outcomes: overall, of whole days, and of groups by size."""
    size = {
        name: (found["segment"] != "all") & found["expected_payers"].between(low, high, inclusive="left")
        for name, (low, high) in CLASSES.items()
    }
    parts = {"overall": found["rows"] > 0, "whole days": found["segment"] == "all", **size}
    table = pd.DataFrame({name: found.loc[part, ["payers_inside", "revenue_inside", "relative"]].mean() for name, part in parts.items()}).T
    return table.assign(outcomes=[int(part.sum()) for part in parts.values()])


# ---------------------------------------------------------------------------------------------- the statistical layer


def window_of_a_law(seed: int, level_sd: float, rows: int = 4000, tests: int = 2) -> Iterator[pd.DataFrame]:
    """Days of a law whose probabilities are known but for levels: of the day, of groups for good, and of groups on a day."""
    rng = np.random.default_rng([seed, 7])
    widths = {"country": (12, 0.35), "category": (6, 0.35), "os": (2, 0.7)}
    for_good = {column: rng.normal(0.0, 0.08, count) for column, (count, _) in widths.items()}
    pool, cap = np.minimum(rng.lognormal(2.3, 1.6, 200_000), 150.0), 150.0
    levels = rng.normal(0.0, level_sd, DAYS + tests)
    days = []
    for level in levels:
        codes = {column: np.minimum(rng.geometric(share, rows) - 1, count - 1) for column, (count, share) in widths.items()}
        p = np.clip(rng.lognormal(np.log(0.03) - 0.5, 1.0, rows), 0.0, 0.5)
        moved = sum(for_good[c][codes[c]] + rng.normal(0.0, 0.05, len(for_good[c]))[codes[c]] for c in codes)
        payer = rng.random(rows) < np.minimum(p * np.exp(level + moved), 0.9)
        days.append((pd.DataFrame(codes), p, np.where(payer, rng.choice(pool, rows), 0.0)))
    past = [np.concatenate([day[part] for day in days[:DAYS]]) for part in (1, 2)]
    rate = np.count_nonzero(past[1]) / past[0].sum()
    usd = past[1].sum() / np.count_nonzero(past[1])
    known = [KnownRows(codes, p * rate, p * rate * usd, revenue) for codes, p, revenue in days]
    number = np.repeat(np.arange(DAYS), rows)
    together = KnownRows(pd.concat([d.segments for d in known[:DAYS]]), past[0] * rate, past[0] * rate * usd, past[1])
    amounts = together.amounts(cap)
    errors = compared_by_day(together, number, [str(i) for i in range(DAYS)], amounts, cap, **SIZES)
    level = follow_level((past[1] > 0.0).astype(float), number, [str(i) for i in range(DAYS)], follow=False)
    noise = noise_of_level(errors, amounts, replace(level, lasting_share=0.0))
    for i, day in enumerate(known[DAYS:]):
        yield judged(day, noise, cap, 1, window=seed, day=i)


@cache
def many_windows(level_sd: float) -> pd.DataFrame:
    """Coverage over 200 windows of a law: with 50 of them the largest groups have 265 outcomes, and a sampling error of .025."""
    return shares(pd.concat([day for seed in range(200) for day in window_of_a_law(seed, level_sd)], ignore_index=True))


def test_intervals_hold_eighty_percent_of_groups_of_every_size_when_levels_move() -> None:
    table = many_windows(LEVEL_SD)
    print(table.round(3))
    for name in ("overall", *CLASSES):
        assert table.loc[name, "payers_inside"] == pytest.approx(0.8, abs=0.06), name
        assert table.loc[name, "revenue_inside"] == pytest.approx(0.8, abs=0.06), name
    assert table.loc["whole days", "payers_inside"] == pytest.approx(0.8, abs=0.06), "400 days, a sampling error of .02"


def test_intervals_are_narrower_when_levels_do_not_move() -> None:
    still, moving = many_windows(0.0), many_windows(LEVEL_SD)
    assert (still["relative"] < moving["relative"]).all()
    assert still.loc["whole days", "relative"] < 0.75 * moving.loc["whole days", "relative"]
    assert still.loc["overall", "payers_inside"] >= 0.74


# ------------------------------------------------------------------------------------------ simulated impressions, models


LAWS = ("additive", "interactions", "thresholds")
SEEDS = {law: range(10 * i, 10 * i + 5) for i, law in enumerate(LAWS)}
"""Five of each law, of its own: the level of a day is the seed's, so the days of laws that share one would count once."""
TEST_DAYS = {(law, seed): 3 if seed % 10 % 3 else 2 for law in LAWS for seed in SEEDS[law]} | {(LAWS[0], 0): 3}
"""Test days of every window: 13 or 14 for each law, 40 in all."""
HOURS = (1, 5, 9, 13, 17, 21)


@cache
def simulated_window(law: str, seed: int, level_sd: float, rows_per_hour: int = 800) -> pd.DataFrame:
    """Train on six simulated days, forecast the next ones, and look at what came."""
    tests = TEST_DAYS[law, seed]
    simulator = Simulator(seed, law, rows_per_hour, level_sd, independent=True)  # type: ignore[arg-type]
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    parts = []
    with TemporaryDirectory() as folder:
        for day in range(DAYS + tests):
            files = []
            for hour in HOURS:
                moment = datetime(2025, 10, 1, hour, tzinfo=UTC) + timedelta(days=day)
                files.append(RawFile(Path(folder) / f"{moment:%d-%H}.parquet", f"{moment:%Y-%m-%d-%H-00}"))
                pq.write_table(simulator.hour(moment)[0], files[-1].path)
            out = Path(folder) / f"day-{day}.parquet"
            flatten_files(files, registry=registry, labelled=True, out=out)
            parts.append(pq.read_table(out).to_pandas())
    table = pd.concat(parts, ignore_index=True)
    X = table[list(feature_names(registry))].copy()
    for column in categorical_names(registry):
        X[column] = X[column].astype("category")
    day = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    past, segments = day < DAYS, X[["country", "advertiser_category", "dev_os"]]
    revenue = table["iap_revenue_d7"].to_numpy(np.float64)
    data = prepare_window(X[past], revenue[past], day[past], row_id=table["row_id"][past])
    context = WindowContext(data, SMALL.model_copy(update={"max_features": 80}), SamplingConfig())
    classifier = buyer_classifier(context, None)
    gating = buyer_gating(context, classifier)
    regressor = revenue_regressor(context, None, gating)
    cap = regressor.expected.cap_usd
    known = out_of_fold_rows(classifier, gating, regressor, segments[past], revenue[past], make_folds(day[past], SMALL.folds))
    amounts = known.amounts(cap)
    errors = compared_by_day(known, day[past], [str(i) for i in range(DAYS)], amounts, cap, **SIZES)
    noise = noise_of_level(errors, amounts, gating.level)
    found = []
    for i in range(DAYS, DAYS + tests):
        rows = day == i
        matrix = encode(classifier.encoder, X[rows])
        probability = np.minimum(classifier.probability(classifier.log_odds(matrix)), gating.cap)
        inputs = (probability, regressor.log_revenue_if_buyer(matrix), gating.whale_probability(matrix))
        seen = KnownRows(segments[rows], gating.at_level(probability), regressor.expected.predict(*inputs), revenue[rows])
        found.append(judged(seen, noise, cap, i - DAYS + 1, law=law, seed=seed, day=i))
    return pd.concat(found, ignore_index=True).assign(movement=noise.day.sd)


@cache
def simulated_windows(level_sd: float) -> pd.DataFrame:
    return pd.concat([simulated_window(law, seed, level_sd) for law, seed in TEST_DAYS], ignore_index=True)


@pytest.mark.soak
def test_intervals_hold_on_three_laws_and_five_seeds() -> None:
    found = simulated_windows(LEVEL_SD)
    assert found.groupby(["law", "seed"])["day"].nunique().sum() == 40
    table = shares(found)
    print(table.round(3))
    print(found.groupby("law")[["payers_inside", "revenue_inside", "relative"]].mean().round(3))
    for name in ("overall", *CLASSES):
        assert 0.74 <= table.loc[name, "payers_inside"] <= 0.86, name
        assert 0.74 <= table.loc[name, "revenue_inside"] <= 0.86, name


@pytest.mark.soak
def test_intervals_are_narrower_on_three_laws_when_levels_do_not_move() -> None:
    moving, still = (shares(simulated_windows(level_sd)) for level_sd in (LEVEL_SD, 0.0))
    print(still.round(3))
    assert (still["relative"] < moving["relative"]).all()
