"""Promises of the window encoder, each against an independent derivation in plain pandas or a known truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ltv_assets.core.contract import Encodings, load_contract
from ltv_assets.core.errors import DataError, ModelFileError
from ltv_assets.modeling.encoding.category_map import factorize
from ltv_assets.modeling.encoding.folds import fold_ids
from ltv_assets.modeling.encoding.target_encoding import revenue_targets
from ltv_assets.modeling.encoding.window_encoder import MAX_CATEGORIES, MIN_COUNT, WindowEncoder

SPEND = load_contract().encodings.ranked[0]


def window(n: int = 4000, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(
        {
            "advertiser_bundle": np.char.add("app", rng.zipf(1.5, n).clip(max=300).astype(str)),
            "age": rng.normal(size=n).astype(np.float32),
            "country": rng.choice(["us", "de", "fr", "jp"], n, p=[0.5, 0.3, 0.15, 0.05]),
            "advertiser_category": pd.Categorical(rng.choice(["games", "shop", "tools"], n)),
            SPEND: np.where(rng.random(n) < 0.3, rng.exponential(20, n), np.nan),
        }
    )
    X.loc[rng.random(n) < 0.1, "advertiser_category"] = None
    rate = X["country"].map({"us": 0.2, "de": 0.1, "fr": 0.05, "jp": 0.4}).to_numpy(float)
    revenue = np.where(rng.random(n) < rate, rng.lognormal(2, 1, n), 0.0)
    return X, revenue, np.sort(rng.integers(0, 5, n))


def fitted(X: pd.DataFrame, targets: Mapping[str, Any], period: np.ndarray) -> tuple[WindowEncoder, pd.DataFrame]:
    """The encoder of these rows, and their cross-fitted columns."""
    encoder, fold = WindowEncoder(), fold_ids(period)
    return encoder, encoder.fit_blocks(X.iloc[:1], lambda names: X[names], targets, fold).transform(X, fold)


def turns(n: int) -> np.ndarray:
    """Four periods by turns, for tests in which it does not matter which row is in which."""
    return np.arange(n) % 4


def stored(encoder: WindowEncoder) -> str:
    return json.dumps(encoder.to_dict(), allow_nan=False)


def shrunk(values: pd.Series, groups: pd.Series, prior: pd.Series | float) -> pd.Series:
    """Random-effects shrinkage written from the formula, category by category."""
    rows = []
    for name, part in values.groupby(groups):
        q = prior if np.isscalar(prior) else prior[name]
        rows.append((name, len(part), part.mean(), part.var(ddof=0) * len(part), q))
    t = pd.DataFrame(rows, columns=["c", "n", "mean", "ss", "q"]).set_index("c")
    total = t["n"].sum()
    within = t["ss"].sum() / (total - len(t))
    between = ((t["n"] * (t["mean"] - t["q"]) ** 2).sum() - (len(t) - 1) * within) / (total - (t["n"] ** 2).sum() / total)
    if between <= 0:
        return t["q"]
    weight = t["n"] / (t["n"] + within / between)
    return t["q"] * (1 - weight) + t["mean"] * weight


def bucket(X: pd.DataFrame, column: str, known: set[str]) -> pd.Series:
    text = X[column].astype(object)
    return text.where(text.isin(known), "<rare>").where(text.notna(), "<missing>")


def derive_column(train: pd.DataFrame, y: pd.Series, rows: pd.DataFrame, column: str, known: set[str]) -> pd.Series:
    table = shrunk(y, bucket(train, column, known), y.mean())
    rare = table.get("<rare>", y.mean())
    return bucket(rows, column, known).map(lambda v: table.get(v, rare)).astype(float)


@pytest.mark.parametrize("target", ["payer", "log_revenue"])
def test_cross_fitted_encoding_equals_a_fit_on_the_other_periods(target: str) -> None:
    X, revenue, period = window()
    targets = revenue_targets(revenue)
    _, out = fitted(X, targets, period)
    y = pd.Series(targets[target])
    for column in ("advertiser_bundle", "country", "advertiser_category"):
        counts = X[column].value_counts()
        known = set(counts[counts >= 10].index)
        for day in range(5):
            rows, others = period == day, period != day
            expected = derive_column(X[others], y[others], X[rows], column, known)
            np.testing.assert_allclose(out.loc[rows, f"{column}__te_{target}"], expected, rtol=2e-6)
            n = bucket(X[rows], column, known).map(bucket(X[others], column, known).value_counts()).fillna(0)
            n = n.where(bucket(X[rows], column, known) != "<rare>", 0) * len(X) / others.sum()
            np.testing.assert_allclose(out.loc[rows, f"{column}__count"], np.log1p(n), rtol=2e-6)


@pytest.mark.contest
def test_pair_encoding_shrinks_to_the_sum_of_its_columns() -> None:
    X, revenue, period = window()
    y = pd.Series(revenue_targets(revenue)["payer"])
    _, out = fitted(X, {"payer": y}, period)
    first, second = "advertiser_bundle", "country"
    counts = {c: X[c].value_counts() for c in (first, second)}
    known = {c: set(v[v >= 10].index) for c, v in counts.items()}
    pair = bucket(X, first, known[first]) + "|" + bucket(X, second, known[second])
    known_pairs = pair.value_counts().loc[lambda n: n >= 10].index
    for day in range(5):
        rows, others = period == day, period != day
        a = derive_column(X[others], y[others], X, first, known[first])
        b = derive_column(X[others], y[others], X, second, known[second])
        additive = a + b - y[others].mean()
        # The clip to the range of the two columns' own encodings, which includes values that occur in no row of this day.
        tables = [derive_column(X[others], y[others], X[others], c, known[c]) for c in (first, second)]
        additive = additive.clip(min(t.min() for t in tables), max(t.max() for t in tables))
        inside = others & pair.isin(known_pairs).to_numpy()
        prior = additive.groupby(pair).first()
        table = shrunk(y[inside], pair[inside], prior)
        expected = pair[rows].map(table).where(pair[rows].isin(table.index), additive[rows])
        np.testing.assert_allclose(out.loc[rows, f"{first}_x_{second}__te_payer"], expected.astype(float), rtol=1e-5)


def test_other_days_are_encoded_by_all_rows_whatever_the_folds() -> None:
    X, revenue, period = window()
    y = pd.Series(revenue_targets(revenue)["payer"])
    encoder, cross = fitted(X, {"payer": y}, period)
    full = encoder.transform(X)
    assert not np.allclose(full["country__te_payer"], cross["country__te_payer"])
    known = set(X["country"].unique())
    np.testing.assert_allclose(full["country__te_payer"], derive_column(X, y, X, "country", known), rtol=2e-6)
    assert stored(fitted(X, {"payer": y}, turns(len(X)))[0]) == stored(encoder)


def test_holdout_labels_cannot_reach_holdout_encodings() -> None:
    X, revenue, period = window()
    train, holdout = period < 4, period == 4
    encoder, _ = fitted(X[train], revenue_targets(revenue[train]), period[train])
    before = encoder.transform(X[holdout])
    shuffled = revenue.copy()
    shuffled[holdout] = np.random.default_rng(1).permutation(revenue[holdout])
    again, _ = fitted(X[train], revenue_targets(shuffled[train]), period[train])
    pd.testing.assert_frame_equal(before, again.transform(X[holdout]), check_exact=True)


def test_own_period_labels_cannot_reach_cross_fitted_encodings() -> None:
    X, revenue, period = window()
    _, base = fitted(X, revenue_targets(revenue), period)
    changed = np.where(period == 2, revenue[::-1] + 7.0, revenue)
    _, other = fitted(X, revenue_targets(changed), period)
    np.testing.assert_allclose(base[period == 2], other[period == 2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(base[period == 1], other[period == 1], equal_nan=True)


def test_own_label_leaks_into_the_encoding_of_all_rows_but_not_into_the_cross_fitted_one() -> None:
    rng = np.random.default_rng(3)
    n = 20_000
    category = rng.integers(0, 1500, n)
    rate = rng.uniform(0.0, 0.5, 1500)[category]
    y = (rng.random(n) < rate).astype(float)
    encoder, clean = fitted(pd.DataFrame({"c": category.astype(str)}), {"y": y}, np.repeat(np.arange(5), n // 5))
    leaky = encoder.transform(pd.DataFrame({"c": category.astype(str)}))
    chance = y - rate
    assert np.corrcoef(leaky["c__te_y"], chance)[0, 1] > 0.1
    assert abs(np.corrcoef(clean["c__te_y"], chance)[0, 1]) < 0.03
    assert np.corrcoef(clean["c__te_y"], rate)[0, 1] > 0.5


def test_a_column_without_signal_is_shrunk_to_the_mean() -> None:
    rng = np.random.default_rng(3)
    n = 20_000
    X = pd.DataFrame({"c": rng.integers(0, 1500, n).astype(str)})
    y = (rng.random(n) < 0.1).astype(float)
    _, clean = fitted(X, {"y": y}, np.repeat(np.arange(5), n // 5))
    assert clean["c__te_y"].std() < 0.02
    assert abs(np.corrcoef(clean["c__te_y"], y)[0, 1]) < 0.03


def test_unseen_rare_and_missing_have_their_own_buckets() -> None:
    X = pd.DataFrame({"c": ["a"] * 30 + ["b"] * 20 + ["once"] + [None] * 9})
    y = np.r_[np.ones(30), np.zeros(20), 1.0, np.zeros(9)]
    encoder, _ = fitted(X, {"y": y}, turns(len(X)))  # labels do not vary inside a category, so nothing is shrunk
    out = encoder.transform(pd.DataFrame({"c": ["a", "b", "once", "never seen", None, "", np.nan]}))
    assert out["c"].tolist() == [2, 3, 1, 1, 0, 0, 0]
    assert out["c__te_y"].tolist() == [1, 0, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(out["c__count"], np.log1p([30, 20, 0, 0, 9, 9, 9]), rtol=1e-6)


def test_codes_stop_at_the_most_frequent_values_but_encodings_go_on() -> None:
    values = np.repeat(np.arange(300), 310 - np.arange(300))
    X = pd.DataFrame({"c": np.char.add("v", values.astype(str))})
    encoder, _ = fitted(X, {"y": (values >= MAX_CATEGORIES).astype(float)}, turns(len(X)))
    out = encoder.transform(pd.DataFrame({"c": ["v0", "v254", "v255", "v299"]}))
    assert out["c"].tolist() == [2, 256, 1, 1]
    assert out["c__te_y"].tolist() == [0, 0, 1, 1]


def test_the_same_value_in_another_type_is_the_same_category() -> None:
    train = pd.DataFrame({"c": pd.Series([7] * 20 + [8] * 20, dtype=object)})
    encoder, _ = fitted(train, {"y": [1.0] * 20 + [0.0] * 20}, turns(40))
    for values in (["7", "8"], pd.Categorical(["7", "8"]), np.array([7.0, 8.0], dtype=object), pd.array(["7", "8"], dtype="string")):
        assert encoder.transform(pd.DataFrame({"c": values}))["c"].tolist() == [2, 3]


def test_ranks_and_deviation_equal_pandas() -> None:
    X, revenue, period = window(1200)  # fewer than the grid in every group, so the ranks are exact
    encoder, _ = fitted(X, revenue_targets(revenue), period)
    out = encoder.transform(X)
    spend = X[SPEND].astype(np.float32)
    grouped = spend.groupby(X["country"])
    small = grouped.transform("count") <= 256
    expected = (grouped.rank(method="average") - 0.5) / grouped.transform("count")
    np.testing.assert_allclose(out.loc[small, f"{SPEND}__rank_in_country"], expected[small], rtol=1e-5)
    deviation = np.log1p(spend.astype(float)) - np.log1p(grouped.transform("median").astype(float))
    np.testing.assert_allclose(out[f"{SPEND}__minus_median_in_country"], deviation, rtol=1e-4, atol=1e-6)
    assert (out[f"{SPEND}__rank_in_country"].isna() == spend.isna()).all()


def test_ranks_of_large_groups_stay_within_the_grid_error() -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"country": "us", SPEND: rng.exponential(10, 30_000)})
    out = fitted(X, {"y": np.zeros(30_000)}, turns(30_000))[0].transform(X)
    exact = (X[SPEND].astype(np.float32).rank() - 0.5) / len(X)
    assert np.abs(out[f"{SPEND}__rank_in_country"] - exact).max() < 1 / 256


@pytest.mark.contest
def test_cross_fitted_ranks_leave_the_own_period_out() -> None:
    X, revenue, period = window()
    _, out = fitted(X, revenue_targets(revenue), period)
    rows = period == 3
    expected = fitted(X[~rows], revenue_targets(revenue[~rows]), period[~rows])[0].transform(X[rows])
    for name in (f"{SPEND}__rank_in_country", f"{SPEND}__rank_in_advertiser_category", f"{SPEND}__minus_median_in_country"):
        np.testing.assert_array_equal(out.loc[rows, name], expected[name])


def test_nan_infinite_constant_and_empty_columns_are_harmless() -> None:
    n = 60
    X = pd.DataFrame(
        {
            "nan": np.nan,
            "inf": np.where(np.arange(n) % 2, np.inf, 1.0),
            "huge": 1e300,
            "constant": "same",
            "gone": pd.Series([None] * n, dtype=object),
            "flag": np.arange(n) % 3 == 0,
            "count": pd.array([None, *range(n - 1)], dtype="Int64"),
        }
    )
    _, out = fitted(X, {"y": np.arange(n) % 2.0}, turns(n))
    assert out["nan"].isna().all() and out["huge"].isna().all()
    assert out["inf"].isna().sum() == n // 2 and not np.isinf(out).any(axis=None)
    assert out["constant"].eq(2).all() and out["gone"].eq(0).all()
    assert np.isfinite(out[["constant__te_y", "gone__te_y", "constant__count", "gone__count"]]).all(axis=None)
    assert out["count"].isna().sum() == 1
    assert set(map(str, out.dtypes)) == {"float32"}


def test_nan_leaves_a_row_out_of_that_target_only() -> None:
    X = pd.DataFrame({"c": ["a"] * 20 + ["b"] * 20})
    y = np.r_[np.ones(10), np.full(10, np.nan), np.full(20, 4.0)]
    out = fitted(X, {"y": y, "other": np.r_[np.zeros(20), np.ones(20)]}, turns(40))[0].transform(X)
    assert out["c__te_y"].tolist() == [1] * 20 + [4] * 20
    assert out["c__te_other"].tolist() == [0] * 20 + [1] * 20


def test_json_round_trip_is_bit_equal_and_deterministic() -> None:
    X, revenue, period = window()
    encoder, _ = fitted(X, revenue_targets(revenue), period)
    text = json.dumps(encoder.to_dict(), allow_nan=False, sort_keys=True)
    restored = WindowEncoder.from_dict(json.loads(text))
    assert json.dumps(restored.to_dict(), allow_nan=False, sort_keys=True) == text
    pd.testing.assert_frame_equal(encoder.transform(X), restored.transform(X), check_exact=True)
    assert list(restored.get_feature_names_out()) == list(encoder.transform(X[:1]).columns)
    twin, _ = fitted(X, revenue_targets(revenue), period)
    assert json.dumps(twin.to_dict(), allow_nan=False, sort_keys=True) == text


def test_damaged_or_foreign_state_is_refused() -> None:
    X, revenue, period = window(300)
    stored = fitted(X, revenue_targets(revenue), period)[0].to_dict()
    with pytest.raises(ModelFileError, match="version 99"):
        WindowEncoder.from_dict({**stored, "version": 99})
    with pytest.raises(ModelFileError, match="ranks"):
        WindowEncoder.from_dict({k: v for k, v in stored.items() if k != "ranks"})
    with pytest.raises(ModelFileError, match="min_count"):
        WindowEncoder.from_dict({**stored, "parameters": {**stored["parameters"], "min_count": 3}})
    stored["encodings"]["country"]["means"]["payer"].pop()
    with pytest.raises(ModelFileError, match="country"):
        WindowEncoder.from_dict(stored)


def test_columns_may_be_reordered_but_not_missing_or_unknown() -> None:
    X, revenue, period = window(500)
    encoder, _ = fitted(X, revenue_targets(revenue), period)
    pd.testing.assert_frame_equal(encoder.transform(X), encoder.transform(X[X.columns[::-1]]), check_exact=True)
    with pytest.raises(DataError, match="country"):
        encoder.transform(X.drop(columns="country"))
    with pytest.raises(DataError, match="surprise"):
        encoder.transform(X.assign(surprise=1))
    with pytest.raises(DataError, match="age"):
        encoder.transform(X.assign(age="old"))
    with pytest.raises(DataError, match="seen"):
        fitted(X.assign(seen=pd.Timestamp("2025-10-01")), revenue_targets(revenue), period)
    with pytest.raises(DataError, match="repeated: \\['age'\\]"):
        fitted(X[["age", "age"]], revenue_targets(revenue), period)


def test_columns_that_are_left_out_leave_the_others_as_they_were_also_when_stored() -> None:
    X, revenue, period = window()
    encoder, _ = fitted(X, revenue_targets(revenue), period)
    everything = encoder.transform(X)
    wanted = [everything.columns[-1], "country", "age"]
    few = encoder.restrict_to(wanted).transform(X)
    assert list(few) == ["age", "country", everything.columns[-1]]
    pd.testing.assert_frame_equal(few, everything[list(few)])
    assert list(encoder.get_feature_names_out()) == list(few)
    again = WindowEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    pd.testing.assert_frame_equal(again.transform(X), few)
    with pytest.raises(DataError, match="no output columns are called"):
        encoder.restrict_to(["nobody"])


def test_columns_of_numbers_alone_stay_as_they_are() -> None:
    X, revenue, period = window(500)
    numbers = X[["age"]]
    encoder, cross = fitted(numbers, {"y": revenue}, period)
    pd.testing.assert_frame_equal(encoder.transform(numbers), numbers)
    pd.testing.assert_frame_equal(cross, numbers)


def test_bad_labels_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match="2 of 3"):
        revenue_targets([1.0, -1.0, np.nan])
    X = pd.DataFrame({"a": [1.0, 2.0]})
    with pytest.raises(DataError, match="infinite"):
        fitted(X, {"y": [1.0, np.inf]}, turns(2))
    with pytest.raises(DataError, match="one value per row"):
        fitted(X, {"y": [1.0]}, turns(2))


def test_folds_follow_periods_and_merge_when_many() -> None:
    assert fold_ids(["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]
    hours = np.repeat(np.arange(100), 7)
    merged = fold_ids(hours)
    assert merged.max() == 15 and (np.diff(merged) >= 0).all() and np.bincount(merged).min() > 30
    assert all(len(set(merged[hours == h])) == 1 for h in range(100))
    with pytest.raises(DataError, match="two periods"):
        fold_ids([1, 1, 1])
    with pytest.raises(DataError, match="missing for 1 rows"):
        fold_ids([None, "a"])


def test_pairs_are_found_alike_by_table_and_by_search() -> None:
    """The table serves many rows with few pairs, the search few rows with many."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame({c: pd.Categorical(rng.choice(list("abcdefghijkl"), 4000, p=np.arange(1, 13) / 78)) for c in ("country", "dev_os")})
    encoder = WindowEncoder(Encodings(pairs=(("country", "dev_os"),), ranked_within=(), ranked=()))
    encoder.fit_blocks(X, lambda names: X[names], {"payer": rng.random(4000)}, np.arange(4000) % 3)
    (name,) = encoder._pairs
    codes = {c: factorize(X[c]) for c in X}
    levels = {c: encoder._maps[c].levels(*codes[c]) for c in X}
    keys = encoder._pair_key(levels, "country", "dev_os")
    found, counts = np.unique(keys, return_counts=True)
    np.testing.assert_array_equal(encoder._pair_keys[name], found[counts >= MIN_COUNT])
    assert 0 < len(encoder._pair_keys[name]) < len(found)
    together = encoder._pair_slots(name, levels)
    alone = np.concatenate([encoder._pair_slots(name, {c: v[low : low + 10] for c, v in levels.items()}) for low in range(0, 4000, 10)])
    np.testing.assert_array_equal(together, alone)
    known = together > 0
    np.testing.assert_array_equal(encoder._pair_keys[name][together[known] - 1], keys[known])
    assert not np.isin(keys[~known], encoder._pair_keys[name]).any()
