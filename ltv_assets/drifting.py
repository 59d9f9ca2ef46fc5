"""Has the world moved? Scores against the champion's holdout, and a model that tries to tell new rows from old ones.

Two questions the population stability of single features (``features/drift.py``) cannot answer: did the *scores* move, and
did the *joint* distribution move. Pure; what to do about it is decided by checks and by the retraining sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ltv_assets.errors import DataError
from ltv_assets.features.drift import population_stability
from ltv_assets.modeling.metrics import auc

CALENDAR = ("weekday", "hour", "release_date")
"""Columns that name the time itself: a day can always be told from another by them, which says nothing about its rows."""


@dataclass(frozen=True, slots=True)
class Separation:
    """How well a model tells two sets of rows apart: out-of-fold AUC (0.5 = not at all), and the features it used most."""

    auc: float
    rows_before: int
    rows_new: int
    features: tuple[tuple[str, float], ...]


def score_shift(before: Sequence[Path], new: Sequence[Path], *, threads: int) -> float:
    """Population stability index of ``ltv_d7`` between two sets of scored files (columns ``row_id``, ``ltv_d7``)."""
    return float(population_stability(list(before), list(new), ["ltv_d7"], threads=threads)["psi"].iloc[0])


def adversarial_separation(
    before: Sequence[Path],
    new: Sequence[Path],
    features: Sequence[str],
    *,
    max_rows: int = 4000,
    seed: int = 0,
    threads: int = 2,
) -> Separation:
    """Fit a small LightGBM to tell new rows from earlier ones, on two halves of a sample, each scored by the other's model.

    Rows are sampled by the hash of row_id, at most ``max_rows`` a side and equally many on both; halves are cut by the same
    hash, so the result depends neither on order nor on chunking. Features that name the calendar are left out.

    Raises DataError if a side has fewer than 20 rows.
    """
    import lightgbm as lgb

    used = [f for f in features if not f.startswith(CALENDAR)]
    frames = [_sample(files, used, max_rows, threads) for files in (before, new)]
    size = min(len(f) for f in frames)
    if size < 20:
        raise DataError(f"drift against earlier days needs at least 20 rows on each side, found {len(frames[0])} and {len(frames[1])}")
    table = pd.concat([f.iloc[:size] for f in frames], ignore_index=True)
    is_new = np.repeat([0, 1], size)
    half = (table.pop("h") % 2).to_numpy() == 0
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            # In order of the alphabet: in order of appearance a high code would betray the side that comes second.
            table[name] = pd.factorize(table[name].astype("string"), sort=True)[0].astype(np.float32)
    X = table.to_numpy(dtype=np.float32)
    parameters = {
        "objective": "binary",
        "num_leaves": 7,
        "learning_rate": 0.1,
        "min_data_in_leaf": max(10, size // 100),
        "feature_fraction": 0.5,
        "max_bin": 31,
        "num_threads": threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    scores, gains = np.zeros(len(X)), np.zeros(X.shape[1])
    for part in (half, ~half):
        if part.all() or not part.any() or len(np.unique(is_new[part])) < 2:
            raise DataError("drift against earlier days: a half of the sample has rows of one side only")
        booster = lgb.train(parameters, lgb.Dataset(X[part], is_new[part]), num_boost_round=40)
        scores[~part] = booster.predict(X[~part], num_threads=threads)
        gains += booster.feature_importance("gain")
    order = np.argsort(-gains, kind="stable")[:10]
    share = gains / max(gains.sum(), 1e-12)
    names = list(table.columns)
    return Separation(float(auc(is_new, scores)), size, size, tuple((names[i], float(share[i])) for i in order if gains[i] > 0))


def _sample(files: Sequence[Path], features: Sequence[str], max_rows: int, threads: int) -> pd.DataFrame:
    """The rows with the smallest hashes of row_id; a threshold thins the stream first, so large days are never sorted whole."""
    total = sum(pq.read_metadata(f).num_rows for f in files)
    threshold = min(1.0, 2.0 * max_rows / max(total, 1))
    columns = ", ".join('"' + f.replace('"', '""') + '"' for f in features)
    with duckdb.connect(config={"threads": threads}) as connection:
        return connection.execute(
            f"SELECT hash(row_id) AS h, {columns} FROM read_parquet(?) WHERE hash(row_id) <= {int(threshold * (2**64 - 1))} "
            f"ORDER BY h, row_id LIMIT {int(max_rows)}",
            [[str(f) for f in files]],
        ).fetch_df()
