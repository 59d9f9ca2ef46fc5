"""Folds of cross-fitted encodings: the rows that teach a row's encoding.

What belongs here: fold numbers from periods. What does not: the folds of models (``modeling/folds.py``). Next to read:
``window_encoder.py``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ltv_assets.core.errors import DataError
from ltv_assets.modeling.encoding.category_map import Ints

MAX_FOLDS = 16


def fold_ids(period: ArrayLike) -> Ints:
    """Fold number 0..F-1 of each row, by its ``period`` (n,); a row is encoded from the folds it is not in.

    One fold per distinct period; more than 16 periods are merged into 16 runs of neighbouring periods with about equally
    many rows. ``DataError`` when a row has no period, or all rows have the same.
    """
    values = np.asarray(period)
    sorted_codes, _ = pd.factorize(values, sort=True, use_na_sentinel=True)
    codes = sorted_codes.astype(np.int64)
    if (codes < 0).any():
        raise DataError(f"period is missing for {int((codes < 0).sum())} rows: every row needs one")
    count = int(codes.max(initial=0)) + 1
    if count < 2:
        raise DataError(f"cross-fitting needs rows in at least two periods, found {len(values)} row(s) in one")
    if count <= MAX_FOLDS:
        return codes
    before = np.cumsum(np.bincount(codes)) - 0.5 * np.bincount(codes)
    merged = np.minimum((before * MAX_FOLDS / len(values)).astype(np.int64), MAX_FOLDS - 1)
    return np.unique(merged[codes], return_inverse=True)[1].astype(np.int64)
