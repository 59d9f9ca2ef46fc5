"""Forecasts of groups: sums that hold in every digit, and intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ltv_assets.modeling import cohorts
from ltv_assets.modeling.cohorts import Amounts, CohortNoise, Movement, group_rows, learn_amounts, sum_up, totals_differ, with_intervals

Floats = NDArray[np.float64]
NOTHING_MOVES = CohortNoise(day=Movement(0.0), amount=Movement(0.0), groups={"g": Movement(0.0)}, group_amounts={"g": Movement(0.0)})


def one_group(p: Floats, expected: Floats, amounts: Amounts, noise: CohortNoise = NOTHING_MOVES) -> pd.Series:
    groups = group_rows(pd.DataFrame(index=range(len(p))), min_rows=1, max_segments=1)
    return with_intervals(sum_up(groups, p, expected, amounts), noise, 1).iloc[0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 9))
def test_groups_add_up_to_the_day_in_every_digit_in_any_order(seed: int, rows: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    segments = pd.DataFrame({"g": rng.integers(0, values, rows), "h": pd.Categorical(rng.choice(["x", "y", None], rows))})
    p, expected = rng.beta(0.5, 20.0, rows), rng.lognormal(0.0, 3.0, rows)
    groups = group_rows(segments, min_rows=3, max_segments=4)
    sums = sum_up(groups, p, expected, Amounts())
    assert totals_differ(sums) == []
    whole = sums.iloc[0]
    for _, part in sums.groupby("segment"):
        shuffled = part.sample(frac=1.0, random_state=seed)
        assert sum(shuffled["expected_payers"]) == whole["expected_payers"]
        assert sum(shuffled["expected_revenue_usd"]) == whole["expected_revenue_usd"]
        assert sum(shuffled["rows"]) == rows
    assert whole["expected_payers"] == pytest.approx(p.sum(), abs=rows * cohorts.PAYER_UNIT)
    assert whole["expected_revenue_usd"] == pytest.approx(expected.sum(), abs=rows * cohorts.MONEY_UNIT)


def test_column_without_a_value_of_enough_rows_is_no_segment() -> None:
    segments = pd.DataFrame({"hour": [f"{h:02d}" for h in range(24)] * 5, "country": ["de"] * 120})
    assert tuple(group_rows(segments, min_rows=10, max_segments=12).codes) == ("all", "country")


def share_inside(forecast: pd.Series, came: Floats, target: str, unit: str = "") -> float:
    low, high = forecast[f"{target}_low{unit}"], forecast[f"{target}_high{unit}"]
    return float(np.mean((came >= low) & (came <= high)))


@pytest.mark.parametrize("level_sd", [0.0, 0.2])
@pytest.mark.parametrize("rows", [150, 1000, 20_000])
def test_interval_holds_eighty_percent_of_outcomes_of_a_known_law(rows: int, level_sd: float) -> None:
    """Payers are Bernoulli, amounts heavy-tailed and cut at a cap, the level of a day lognormal; all parameters are known."""
    rng = np.random.default_rng(rows)
    p = np.clip(rng.lognormal(-3.6, 0.8, rows), 0.0, 0.4)
    spread, cap = 1.3, 80.0
    amounts = np.minimum(rng.lognormal(2.0, spread, 400_000), cap)
    expected = p * amounts.mean()
    known = Amounts((), (float(np.mean((amounts / amounts.mean()) ** 2)),), (float(np.mean((amounts / amounts.mean()) ** 3)),))
    noise = CohortNoise(day=Movement(level_sd**2), amount=Movement(0.0), followed=0.0)
    forecast = one_group(p, expected, known, noise)
    payers, revenue = np.empty(4000), np.empty(4000)
    for i in range(len(payers)):
        level = np.exp(level_sd * rng.normal() - level_sd**2 / 2.0)
        payers[i] = np.count_nonzero(rng.random(rows) < np.minimum(p * level, 1.0))
        revenue[i] = rng.choice(amounts, int(payers[i])).sum()
    assert share_inside(forecast, payers, "payers") == pytest.approx(0.8, abs=0.05)
    assert share_inside(forecast, revenue, "revenue", "_usd") == pytest.approx(0.8, abs=0.035)


def test_group_that_will_hardly_pay_has_an_interval_from_nothing() -> None:
    forecast = one_group(np.full(50, 0.001), np.full(50, 0.01), Amounts())
    assert forecast["payers_low"] == forecast["revenue_low_usd"] == 0.0
    assert forecast["payers_high"] >= forecast["expected_payers"] == pytest.approx(0.05)


def test_nobody_and_nothing_expected_is_a_forecast_of_zero() -> None:
    forecast = one_group(np.zeros(0), np.zeros(0), Amounts())
    assert forecast.drop(["segment", "value"]).astype(float).eq(0.0).all()


def test_nothing_known_is_wide_and_every_day_that_kept_its_level_narrows_it() -> None:
    errors = [np.zeros(n) for n in (0, 2, 6, 30)]
    found = [cohorts.learn_movement(e, np.full(len(e), 0.03**2), scale=cohorts.DAY_SCALE).sd for e in errors]
    assert found[0] > 0.25 and found == sorted(found, reverse=True) and found[-1] < 0.02


@pytest.mark.parametrize("level_sd", [0.1, 0.3])
def test_movement_of_many_days_is_found(level_sd: float) -> None:
    rng = np.random.default_rng(1)
    noise = np.full(4000, 0.1**2)
    error = rng.normal(0.0, np.sqrt(noise + level_sd**2))
    assert cohorts.learn_movement(error, noise, scale=cohorts.DAY_SCALE).sd == pytest.approx(level_sd, rel=0.07)


def test_amounts_of_few_payers_lean_on_an_exponential_and_of_many_on_themselves() -> None:
    rng = np.random.default_rng(0)
    few, many = (learn_amounts(np.ones(n), rng.random(n) + 1.0, np.full(n, 5.0)) for n in (5, 5000))
    assert 1.0 < few.second[0] < 2.0 and few.third[0] >= few.second[0] ** 2
    assert np.allclose(many.second, 1.0, atol=0.03)
    expected = rng.lognormal(0.0, 1.0, 4000)
    scattered = learn_amounts(np.ones(4000), expected, expected * rng.exponential(1.0, 4000))
    assert len(scattered.second) == cohorts.AMOUNT_BINS
    assert np.asarray(scattered.second) == pytest.approx(np.full(5, 2.0), rel=0.25)


def test_variance_of_a_forecast_is_that_of_what_came_however_far_expected_amounts_differ() -> None:
    rng = np.random.default_rng(3)
    expected = rng.lognormal(0.0, 1.2, 60_000)
    p = rng.uniform(0.01, 0.2, len(expected))
    paid = np.where(rng.random(len(p)) < p, expected * rng.exponential(1.0, len(p)), 0.0)
    forecast = sum_up(
        group_rows(pd.DataFrame(index=range(len(p))), min_rows=1, max_segments=1), p, p * expected, learn_amounts(p, expected, paid)
    )
    assert forecast["revenue_2"][0] == pytest.approx(np.sum(p * 2.0 * expected**2 - (p * expected) ** 2), rel=0.15)


def test_movement_of_groups_is_found_beside_the_noise_that_they_share_with_their_day() -> None:
    rng = np.random.default_rng(4)
    errors = []
    for day in range(400):
        payers = rng.poisson(300.0 * np.exp(rng.normal(0.0, 0.05, 3)))
        for segment, value, n, came in (("all", "all", 900.0, payers.sum()), *(("os", str(i), 300.0, payers[i]) for i in range(3))):
            row = {"day": str(day), "ahead": False, "expected_payers": n, "expected_revenue_usd": 10.0 * n, "payers": came}
            errors.append(
                {**row, "segment": segment, "value": value, "payers_2": n, "revenue_capped_usd": 10.0 * came, "amount_variance": n}
            )
    noise = cohorts.learn_noise(pd.DataFrame(errors), Amounts(), followed=0.2, lasting_share=0.0)
    assert noise.groups["os"].variance == pytest.approx(0.05**2 * 2.0 / 3.0, rel=0.2), "of one of three against their mean"


def test_group_that_is_the_whole_day_leaves_the_movement_of_groups_unknown() -> None:
    row = {"day": "1", "ahead": False, "expected_payers": 50.0, "expected_revenue_usd": 500.0, "payers": 60, "revenue_capped_usd": 700.0}
    errors = pd.DataFrame([{**row, "segment": s, "value": s, "payers_2": 50.0, "amount_variance": 1e4} for s in ("all", "os")])
    noise = cohorts.learn_noise(errors, Amounts(), followed=0.2, lasting_share=0.0)
    assert noise.groups["os"] == cohorts.unknown_movement(cohorts.GROUP_SCALE)


def test_noise_survives_its_file() -> None:
    noise = CohortNoise(Amounts((1.0,), (2.0, 3.0), (6.0, 7.0)), groups={"country": Movement(0.01, 12)}, days=("2025-10-01",))
    assert CohortNoise.from_json(noise.to_json()) == noise
    assert CohortNoise.from_json(noise.to_json()).to_json() == noise.to_json()


def test_interval_widens_with_the_lasting_part_of_movements_only() -> None:
    passing, lasting = (CohortNoise(day=Movement(0.04), followed=0.2, lasting_share=share) for share in (0.0, 0.5))
    assert passing.payers_variance(["all"], 9)[0] == passing.payers_variance(["all"], 1)[0] == pytest.approx(0.048)
    assert lasting.payers_variance(["all"], 3)[0] == pytest.approx(0.04 * (1.2 + 2 * 0.5))


def test_values_that_a_forecast_did_not_name_are_found_among_its_others() -> None:
    later = pd.DataFrame({"country": ["de", "fr", None, "xx", "de"]})
    groups = cohorts.same_groups(later, {"all": ("all",), "country": ("(missing)", "de"), "gone": ("a",)})
    came = cohorts.observed(groups, np.array([1.0, 2.0, 3.0, 4.0, 0.0]), 3.5)
    found = dict(zip(zip(*groups.listed(), strict=True), zip(came["payers"], came["revenue_capped_usd"], strict=True), strict=True))
    assert found == {
        ("all", "all"): (4, 9.5),
        ("country", "(missing)"): (1, 3.0),
        ("country", "de"): (1, 1.0),
        ("country", "(other)"): (2, 5.5),
    }
