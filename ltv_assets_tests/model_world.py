"""A small window with a known law, and settings small enough for tests of the models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltv_assets.core.config import BoosterConfig, ForestConfig, ModelsConfig, StackerConfig
from ltv_assets.modeling import LTVModel

SMALL_BOOSTER = BoosterConfig(num_leaves=5, learning_rate=0.1, min_data_in_leaf=20, max_rounds=25, patience=5)
SMALL = ModelsConfig(
    buyer_classifier=SMALL_BOOSTER,
    whale_classifier=SMALL_BOOSTER,
    revenue_head=SMALL_BOOSTER,
    increments=SMALL_BOOSTER,
    boosting=SMALL_BOOSTER,
    forest=ForestConfig(trees=5, num_leaves=8),
    stacker=StackerConfig(booster=SMALL_BOOSTER),
)
"""Every part present, none of them large."""


@dataclass(frozen=True)
class World:
    """Rows of a law: ``probability`` and ``oracle`` (E[log1p revenue]) are exact."""

    X: pd.DataFrame
    revenue: pd.DataFrame
    period: NDArray[np.int64]
    row_id: NDArray[np.object_]
    probability: NDArray[np.float64]
    oracle: NDArray[np.float64]

    def rows(self, chosen: NDArray[np.bool_]) -> World:
        """The chosen rows."""
        return World(
            self.X[chosen].reset_index(drop=True),
            self.revenue[chosen].reset_index(drop=True),
            self.period[chosen],
            self.row_id[chosen],
            self.probability[chosen],
            self.oracle[chosen],
        )


@cache
def world(rows: int = 3000, periods: int = 4, seed: int = 0, payer_log_odds: float = -2.2) -> World:
    """A window with numbers, gaps, an all-missing and a constant column, and two categoricals with gaps."""
    rng = np.random.default_rng(seed)
    spend = rng.exponential(3.0, rows)
    sessions = rng.normal(size=rows)
    country = rng.choice(["us", "de", "fr", "jp"], rows, p=[0.5, 0.25, 0.2, 0.05])
    effect = pd.Series(country).map({"us": 0.4, "de": 0.0, "fr": -0.3, "jp": 0.6}).to_numpy(dtype=float)
    odds = payer_log_odds + 0.8 * (np.log1p(spend) - 1.2) + 0.5 * sessions + effect
    probability = 1.0 / (1.0 + np.exp(-odds))
    log_mean = 1.2 + 0.4 * np.log1p(spend)
    log_revenue = np.clip(log_mean + 0.5 * rng.normal(size=rows), 0.05, None)
    d7 = np.where(rng.random(rows) < probability, np.expm1(log_revenue), 0.0)
    d14 = d7 + np.where(rng.random(rows) < 0.05 + 0.1 * (d7 > 0), rng.exponential(4.0, rows), 0.0)
    d28 = d14 + np.where(rng.random(rows) < 0.05, rng.exponential(4.0, rows), 0.0)
    gaps = sessions.copy()
    gaps[rng.random(rows) < 0.3] = np.nan
    X = pd.DataFrame(
        {
            "spend": spend.astype(np.float32),
            "sessions": sessions.astype(np.float32),
            "sessions_with_gaps": gaps.astype(np.float32),
            "noise": rng.normal(size=rows).astype(np.float32),
            "all_missing": np.full(rows, np.nan, dtype=np.float32),
            "constant": np.ones(rows, dtype=np.float32),
            "country": pd.Categorical(np.where(rng.random(rows) < 0.02, None, country)),
            "make": pd.Categorical(rng.choice([f"m{i}" for i in range(30)], rows)),
        }
    )
    period = np.arange(rows) * periods // rows
    row_id = np.array([f"row-{seed}-{i}" for i in range(rows)], dtype=object)
    return World(X, pd.DataFrame({"d7": d7, "d14": d14, "d28": d28}), period, row_id, probability, probability * log_mean)


@cache
def fitted(seed: int = 0) -> tuple[LTVModel, World, World]:
    """A small model fitted on all but the last period of ``world()``, the training rows and the last period's."""
    every = world(4000, 5, seed)
    train, last = every.rows(every.period < 4), every.rows(every.period == 4)
    model = LTVModel(models=SMALL, random_state=0).fit(train.X, train.revenue, period=train.period, row_id=train.row_id)
    return model, train, last
