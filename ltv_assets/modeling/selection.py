"""Which encoded columns the models of a window see.

What belongs here: leaving out columns that say nothing, and the choice of the most telling ones when there are more than
``models.max_features``. What does not: encodings (``encoding/``). Next to read: ``design_matrix.py``, which asks for it.

The choice looks at labels, so every fold makes its own, from the rows that train it: an out-of-fold score profits from it
no more than the score of a day that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ltv_assets.modeling.dataset import Floats, Ints, signed_log
from ltv_assets.modeling.lightgbm_params import repeatable_params

SELECTION_ROWS = 100_000
"""Gains and correlations are taken from at most about this many evenly spaced rows."""
SELECTION_TREES = 60


def varying_columns(blocks: Iterable[NDArray[np.float32]]) -> Ints:
    """Numbers of the columns with more than one value, a gap being a value; the first column when there are none.

    ``blocks``: the rows, in pieces (n, m); all are looked at.
    """
    first: NDArray[np.float32] | None = None
    found = np.zeros(0, dtype=bool)
    for block in blocks:
        if first is None:
            first, found = block[0].copy(), np.zeros(block.shape[1], dtype=bool)
        open_columns = np.flatnonzero(~found)
        part = block[:, open_columns]
        found[open_columns] = ((part != first[open_columns]) & ~(np.isnan(part) & np.isnan(first[open_columns]))).any(axis=0)
    chosen = np.flatnonzero(found)
    return chosen if len(chosen) else np.zeros(1, dtype=np.int64)


def most_telling(
    values: NDArray[np.float32], log_revenue: Floats, categorical: Sequence[int], count: int, *, seed: int, threads: int
) -> Ints:
    """Numbers, ascending, of the ``count`` columns that serve trees or lines best.

    Two rankings, merged by each column's better place: gain in a boosting of ``log_revenue``, whose trees each see half of
    the columns so that correlated ones share it; and the correlation of the payer flag with the column's signed log or with
    its gaps (Fan and Lv 2008), because what a line follows with ease earns a tree little. ``categorical``: columns of codes.
    """
    if values.shape[1] <= count:
        return np.arange(values.shape[1])
    every = -(-len(values) // SELECTION_ROWS)
    x, y = values[::every], log_revenue[::every]
    trees, lines = _gains(x, y, categorical, seed, threads), _correlations(x, (y > 0).astype(np.float64), categorical)
    return np.sort(np.argsort(np.minimum(_places(trees), _places(lines)), kind="stable")[:count])


def _places(merit: Floats) -> Ints:
    place = np.empty(len(merit), dtype=np.int64)
    place[np.argsort(-merit, kind="stable")] = np.arange(len(merit))
    return place


def _gains(x: NDArray[np.float32], y: Floats, categorical: Sequence[int], seed: int, threads: int) -> Floats:
    params: dict[str, Any] = {
        "objective": "regression",
        "num_leaves": 31,
        "learning_rate": 0.1,
        "feature_fraction": 0.5,
        "min_data_in_leaf": 50,
        "max_bin": 63,
        **repeatable_params(seed, threads, by_row=True),
    }
    dataset = lgb.Dataset(x, label=y, categorical_feature=list(categorical), params=params)
    return np.asarray(lgb.train(params, dataset, SELECTION_TREES).feature_importance("gain"), dtype=np.float64)


def _correlations(x: NDArray[np.float32], payer: Floats, categorical: Sequence[int]) -> Floats:
    """Larger absolute correlation with the payer flag of the signed log (gaps at its mean) and of the gap; 0 for codes."""
    codes, target = set(categorical), payer - payer.mean()
    spread = float(np.sqrt(np.mean(target**2))) or 1.0

    def correlation(column: Floats) -> float:
        deviation = column - column.mean()
        scale = float(np.sqrt(np.mean(deviation**2)))
        return abs(float(np.mean(deviation * target))) / (scale * spread) if scale > 1e-9 else 0.0

    out = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        if j not in codes:
            column = signed_log(x[:, j].astype(np.float64))
            gap = np.isnan(column)
            shown = np.where(gap, column[~gap].mean() if not gap.all() else 0.0, column)
            out[j] = max(correlation(shown), correlation(gap.astype(np.float64)))
    return out
