"""How close the models come to the best possible, measured on simulated impressions whose law is known.

One law and seed runs with the slow tests on fewer rows, the grid of three laws and three seeds by hand (``-m soak``), and likewise
three laws that no learner was designed for. Shares are on the test days:
(MSLE of the constant - MSLE) / (MSLE of the constant - MSLE of the oracle); their sampling error is about 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.config import PROJECT_ROOT
from ltv_assets.features.flatten import flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.modeling import LTVModel
from ltv_assets.modeling.evaluation.metrics import attained_share, bias_ratio, ece, mean_p_over_rate, msle, revenue_capture
from ltv_assets.simulator import simulate

LAWS = ("additive", "interactions", "thresholds")
LEAST_SHARE = {"additive": 0.90, "interactions": 0.80, "thresholds": 0.80}
FEW_ROWS, LEAST_SHARE_OF_FEW = 250, 0.89
"""Rows an hour in CI, and what the additive law's share may not fall below there."""
GRID = [(law, seed) for law in LAWS for seed in (1, 2, 3)]
UNFORESEEN = [(law, seed) for law in ("saturating", "rare", "gaps") for seed in (1, 2, 3)]


@dataclass(frozen=True)
class Split:
    """Flattened rows of one split with their truth, in the same order."""

    X: pd.DataFrame
    labels: pd.DataFrame
    day: NDArray[np.object_]
    truth: pd.DataFrame


def _flattened(root: Path, split: str) -> Split:
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    parts, days = [], []
    for (name, day), files in find_days(root).items():
        if name == split:
            out = root / f"{split}-{day}.parquet"
            flatten_files(files, registry=registry, labelled=split == "train", out=out)
            parts.append(pq.read_table(out).to_pandas())
            days += [day] * len(parts[-1])
    table = pd.concat(parts, ignore_index=True)
    X = table[list(feature_names(registry))].copy()
    for column in categorical_names(registry):
        X[column] = X[column].astype("category")
    truth = pd.read_parquet(root / "truth" / f"{split}.parquet").set_index("row_id").loc[table["row_id"]].reset_index()
    labels = table[["iap_revenue_d7", "iap_revenue_d14", "iap_revenue_d28"]]
    return Split(X, labels, np.array(days, dtype=object), truth)


def simulated(law: str, seed: int, rows_per_hour: int) -> tuple[Split, Split]:
    """Six training days and two test days, flattened; nothing stays on disk."""
    with TemporaryDirectory() as folder:
        simulate(Path(folder), law=law, train_days=6, test_days=2, rows_per_hour=rows_per_hour, seed=seed)  # type: ignore[arg-type]
        return _flattened(Path(folder), "train"), _flattened(Path(folder), "test")


def share(test: Split, train: Split, ltv_d7: NDArray[np.float64]) -> float:
    """Attained share of a prediction in USD on the test days."""
    revenue = test.truth["revenue"].to_numpy()
    constant = np.expm1(np.log1p(train.truth["revenue"]).mean())
    oracle = np.expm1(test.truth["oracle_log"].to_numpy())
    return attained_share(msle(revenue, ltv_d7), msle(revenue, np.full(len(revenue), constant)), msle(revenue, oracle))


@cache
def measured(law: str, seed: int, rows_per_hour: int = 600) -> dict[str, float]:
    """Every figure that is promised, for one law and seed."""
    train, test = simulated(law, seed, rows_per_hour)
    model = LTVModel(random_state=0).fit(train.X, train.labels, period=train.day, row_id=train.truth["row_id"])
    frame = model.predict_frame(test.X)
    revenue = test.truth["revenue"].to_numpy()
    payer = revenue > 0
    ltv, p = frame["ltv_d7"].to_numpy(), frame["buyer_probability"].to_numpy()
    return {
        "share": share(test, train, ltv),
        "reference": share(test, train, model.models_.reference_ltv(test.X)),
        "ece": ece(payer, p),
        "p_ratio": mean_p_over_rate(payer, p),
        "expected_ratio": bias_ratio(revenue, frame["expected_revenue_d7"].to_numpy(), model.models_.cap_usd),
        "zero_gap": float(frame["predicted_zero"].mean() - np.mean(~payer)),
        "capture_gap": revenue_capture(revenue, test.truth["oracle_log"], 0.1) - revenue_capture(revenue, ltv, 0.1),
        "crossings": float(np.sum((ltv > frame["ltv_d14"]) | (frame["ltv_d14"] > frame["ltv_d28"]))),
    }


def _assert_promises(law: str, figures: dict[str, float], least_share: float | None = None) -> None:
    print(law, {k: round(v, 4) for k, v in figures.items()})
    assert figures["share"] >= (least_share or LEAST_SHARE[law])
    assert figures["share"] >= figures["reference"] + (0.03 if law == "additive" else 0.0)
    assert figures["ece"] <= 0.005
    assert 0.87 <= figures["p_ratio"] <= 1.13
    assert 0.75 <= figures["expected_ratio"] <= 1.25
    assert abs(figures["zero_gap"]) <= 0.006
    assert figures["capture_gap"] <= 0.05
    assert figures["crossings"] == 0


@pytest.mark.slow
def test_additive_law_is_nearly_attained() -> None:
    _assert_promises("additive", measured("additive", 1, FEW_ROWS), LEAST_SHARE_OF_FEW)


@pytest.mark.soak
@pytest.mark.parametrize(("law", "seed"), GRID)
def test_every_law_and_seed_is_nearly_attained(law: str, seed: int) -> None:
    _assert_promises(law, measured(law, seed))


@pytest.mark.soak
@pytest.mark.parametrize(("law", "seed"), UNFORESEEN)
def test_laws_that_nobody_designed_for_are_learnt_better_than_by_the_reference(law: str, seed: int) -> None:
    figures = measured(law, seed)
    print(law, {k: round(v, 4) for k, v in figures.items()})
    assert figures["share"] >= figures["reference"]
    assert figures["ece"] <= 0.005
    assert abs(figures["zero_gap"]) <= 0.006
    assert figures["crossings"] == 0


@pytest.mark.soak
def test_means_over_the_grid_are_unbiased() -> None:
    figures = [measured(law, seed) for law, seed in GRID]
    assert 0.95 <= np.mean([f["p_ratio"] for f in figures]) <= 1.05
    assert 0.90 <= np.mean([f["expected_ratio"] for f in figures]) <= 1.10


@pytest.mark.slow
def test_shuffled_labels_teach_nothing() -> None:
    """With the training labels dealt anew among the rows, what is left is the constant: no leak, no memory of noise."""
    train, test = simulated("additive", 1, 150)
    order = np.random.default_rng(0).permutation(len(train.X))
    shuffled = train.labels.iloc[order].reset_index(drop=True)
    model = LTVModel(random_state=0).fit(train.X, shuffled, period=train.day, row_id=train.truth["row_id"])
    assert abs(share(test, train, model.predict(test.X))) <= 0.05
