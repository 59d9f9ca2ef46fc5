"""The table of figures: complete, aligned, honest about what is undefined."""

from __future__ import annotations

import math

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ltv_assets.core.errors import DataError
from ltv_assets.modeling.evaluation import metrics as m
from ltv_assets.modeling.evaluation.segments import METRICS, cold_start, evaluate, metrics_markdown, segment_labels

pytestmark = pytest.mark.contest


def holdout(n: int = 6000, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.beta(0.3, 9, n)
    mu = rng.uniform(1.5, 3.0, n)
    revenue = np.where(rng.random(n) < p, np.expm1(rng.normal(mu, 0.5).clip(0.01)), 0.0)
    ltv = np.expm1(p * mu)
    zero = p * mu < np.quantile(p * mu, 0.97)
    scores = pd.DataFrame(
        {
            "buyer_probability": p,
            "log_revenue_if_buyer": mu,
            "ltv_d7": ltv,
            "expected_revenue_d7": p * np.expm1(mu + 0.125),
            "ltv_d14": ltv * 1.1,
            "ltv_d28": ltv * 1.2,
            "predicted_zero": zero,
            "iap_revenue_d7": np.where(zero, 0.0, ltv),
            "reference_log": p * mu * rng.uniform(0.5, 1.5, n),
        }
    )
    segments = pd.DataFrame({"country": rng.choice(["us", "de", None], n, p=[0.6, 0.39, 0.01]), "hour": rng.integers(0, 3, n)})
    return scores, revenue, segments, p * mu


def value(table: pd.DataFrame, metric: str, segment: str = "all") -> float:
    found = table.loc[(table["metric"] == metric) & (table["segment"] == segment), "value"]
    assert len(found) == 1, (metric, segment)
    return float(found.iloc[0])


def test_every_metric_is_reported_once_and_in_order() -> None:
    scores, revenue, segments, oracle = holdout()
    labels = pd.DataFrame({"d7": revenue, "d14": revenue * 1.1, "d28": revenue * 1.2})
    table = evaluate(scores, labels, cap_usd=100.0, segments=segments, oracle_log=oracle)
    overall = table[table["segment"] == "all"]
    assert list(overall["metric"]) == list(METRICS)
    assert np.isfinite(overall["value"]).all()
    assert list(table.columns) == ["metric", "segment", "value", "low", "high"]
    assert not table.duplicated(["metric", "segment"]).any()


def test_figures_equal_direct_computation() -> None:
    scores, revenue, _, oracle = holdout()
    table = evaluate(scores, revenue, cap_usd=100.0, oracle_log=oracle, constant_log=0.05)
    log = np.log1p(revenue)

    def error(score: np.ndarray) -> float:
        return float(np.sqrt(np.mean((score - log) ** 2)))

    expected = {
        "rmsle": error(np.log1p(scores["ltv_d7"])),
        "rmsle_gated": error(np.log1p(scores["iap_revenue_d7"])),
        "rmsle_reference": error(scores["reference_log"]),
        "rmsle_constant": error(np.full(len(log), 0.05)),
        "rmsle_zero": error(np.zeros(len(log))),
        "rmsle_oracle": error(oracle),
        "zero_rate_observed": np.mean(revenue == 0),
        "zero_rate_predicted": 0.97,
        "payers": np.sum(revenue > 0),
        "bias_ratio_capped": scores["expected_revenue_d7"].sum() / np.minimum(revenue, 100).sum(),
        "capture_top_10pct": m.revenue_capture(revenue, scores["ltv_d7"], 0.1),
        "auc": m.auc(revenue > 0, scores["buyer_probability"]),
        "horizon_violations": 0,
    }
    for name, figure in expected.items():
        assert value(table, name) == pytest.approx(figure), name
    assert value(table, "rmsle_minus_reference") == pytest.approx(expected["rmsle"] - expected["rmsle_reference"])
    assert value(table, "gate_cost_rmsle") == pytest.approx(expected["rmsle_gated"] - expected["rmsle"])
    assert value(table, "attained_share") == pytest.approx(1)
    share = {k: expected[f"rmsle_{k}"] ** 2 for k in ("constant", "reference", "oracle")}
    attained = (share["constant"] - share["reference"]) / (share["constant"] - share["oracle"])
    assert value(table, "attained_share_reference") == pytest.approx(attained)
    assert value(table, "capture_top_10pct_gated") < value(table, "capture_top_10pct")


def test_segments_equal_an_evaluation_of_their_rows_alone() -> None:
    scores, revenue, segments, oracle = holdout()
    table = evaluate(scores, revenue, cap_usd=100.0, segments=segments, oracle_log=oracle, constant_log=0.05)
    assert set(table["segment"]) == {"all", "country=us", "country=de", "country=(other)", "hour=0", "hour=1", "hour=2"}
    mask = (segments["country"] == "us").to_numpy()
    alone = evaluate(scores[mask], revenue[mask], cap_usd=100.0, oracle_log=oracle[mask], constant_log=0.05)
    inside = table[table["segment"] == "country=us"].reset_index(drop=True)
    pd.testing.assert_frame_equal(inside.drop(columns="segment"), alone.drop(columns="segment"))
    for column in ("country", "hour"):
        rows = table[table["segment"].str.startswith(f"{column}=") & (table["metric"] == "rows")]
        assert rows["value"].sum() == len(scores)


def test_rare_values_are_pooled_and_missing_is_named() -> None:
    column = pd.Series(["us"] * 50 + ["de"] * 30 + ["fr"] * 20 + [None] * 25 + ["xx"])
    assert pd.Series(segment_labels(column, 10, 3)).value_counts().to_dict() == {"us": 50, "de": 30, "(missing)": 25, "(other)": 21}
    assert pd.Series(segment_labels(column, 25, 99)).value_counts().to_dict() == {"us": 50, "de": 30, "(missing)": 25, "(other)": 21}
    assert list(segment_labels(pd.Series([True, False]), 1, 9)) == ["true", "false"]
    assert list(segment_labels(pd.Series([3.0, np.nan]), 1, 9)) == ["3", "(missing)"]
    assert list(segment_labels(column.astype("category"), 10, 3)) == list(segment_labels(column, 10, 3))


def test_what_is_undefined_in_a_segment_is_null_in_parquet_and_duckdb() -> None:
    scores, revenue, _, _ = holdout()
    quiet = np.arange(len(revenue)) < 1000
    revenue = np.where(quiet, 0.0, revenue)
    table = evaluate(scores, revenue, cap_usd=100.0, segments=pd.DataFrame({"quiet": quiet}))
    for name in ("auc", "gini_normalized", "spearman_payers", "capture_top_10pct", "bias_ratio_capped", "mean_p_over_rate", "r2_log1p"):
        assert math.isnan(value(table, name, "quiet=true")), name
        assert math.isfinite(value(table, name, "quiet=false")), name
    assert value(table, "payers", "quiet=true") == 0 and math.isfinite(value(table, "rmsle", "quiet=true"))
    stored = pa.Table.from_pandas(table)
    assert stored["value"].null_count == table["value"].isna().sum() > 0
    assert duckdb.sql("SELECT count(*) - count(value) FROM stored").fetchall()[0][0] == stored["value"].null_count


def test_no_row_for_what_was_not_given() -> None:
    scores, revenue, _, _ = holdout()
    table = evaluate(scores.drop(columns=["reference_log", "ltv_d14", "ltv_d28"]), revenue, cap_usd=100.0)
    absent = {"rmsle_oracle", "attained_share", "rmsle_reference", "rmsle_minus_reference", "rmsle_d14", "rmsle_d28", "horizon_violations"}
    assert absent.isdisjoint(table["metric"])


def test_longer_horizons_use_the_rows_whose_label_is_known() -> None:
    scores, revenue, _, _ = holdout()
    longer = np.where(np.arange(len(revenue)) % 2, revenue * 1.5, np.nan)
    table = evaluate(scores, pd.DataFrame({"iap_revenue_d7": revenue, "iap_revenue_d14": longer}), cap_usd=100.0)
    known = ~np.isnan(longer)
    assert value(table, "rmsle_d14") == pytest.approx(m.rmsle(longer[known], scores["ltv_d14"][known]))
    assert "rmsle_d28" not in set(table["metric"])
    scores.loc[[3, 4], "ltv_d14"] = 0.0
    assert value(evaluate(scores, revenue, cap_usd=100.0), "horizon_violations") == 2


def test_empty_and_payerless_holdouts_do_not_fail() -> None:
    scores, revenue, _, _ = holdout()
    empty = evaluate(scores.iloc[:0], revenue[:0], cap_usd=1.0)
    assert value(empty, "rows") == 0 and math.isnan(value(empty, "rmsle"))
    one = evaluate(scores.iloc[:1], [0.0], cap_usd=1.0)
    assert math.isfinite(value(one, "rmsle")) and math.isnan(value(one, "auc"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y: (s.drop(columns="ltv_d7"), y), "ltv_d7"),
        (lambda s, y: (s, y[:-1]), "one value per scored row"),
        (lambda s, y: (s.assign(buyer_probability=np.nan), y), "buyer_probability"),
        (lambda s, y: (s.assign(iap_revenue_d7=-1.0), y), "iap_revenue_d7"),
        (lambda s, y: (s, np.where(np.arange(len(y)) == 7, np.inf, y)), "position 7"),
    ],
)
def test_broken_input_is_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    scores, revenue, _, _ = holdout(500)
    with pytest.raises(DataError, match=message):
        scores, revenue = change(scores, revenue)
        evaluate(scores, revenue, cap_usd=100.0)


def test_cold_start_marks_what_training_never_saw() -> None:
    assert cold_start(["a", "b", None], ["a", None]).tolist() == [False, True, False]


def test_the_list_of_metrics_can_be_printed() -> None:
    text = metrics_markdown()
    assert all(f"| `{name}` |" in text for name in METRICS)
    assert {x.better for x in METRICS.values()} <= {"lower", "higher", "near 1", "near 0", "none"}
