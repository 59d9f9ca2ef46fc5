"""Folds of cross-fitted encodings: the rows that teach a row's encoding.

What belongs here: fold numbers from periods. What does not: the folds of models (``modeling/folds.py``). Next to read:
``window_encoder.py``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ltv_assets.core.errors import DataError
from ltv_assets.modeling.encoding.category_map import Ints

HASHED_FOLDS = 5
MAX_FOLDS = 16


def _mix(position: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: row positions to 64 well-mixed bits, the same on every machine."""
    with np.errstate(over="ignore"):
        z = position + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def fold_ids(n: int, period: ArrayLike | None = None, folds: ArrayLike | None = None) -> Ints:
    """Fold number 0..F-1 of each of ``n`` rows; a row is encoded from the folds it is not in.

    ``folds`` given: its distinct values. Else one fold per distinct ``period``; more than 16 periods are merged into 16
    runs of neighbouring periods with about equally many rows. One period only: five folds by a hash of the row's position.
    ``DataError`` when lengths differ or fewer than two folds come out.
    """
    given, name = (folds, "folds") if folds is not None else (period, "period")
    if given is None:
        codes: Ints = np.zeros(n, np.int64)
    else:
        values = np.asarray(given)
        if values.shape != (n,):
            raise DataError(f"{name} must have one value per row: expected shape ({n},), found {values.shape}")
        sorted_codes, _ = pd.factorize(values, sort=True, use_na_sentinel=True)
        codes = sorted_codes.astype(np.int64)
        if (codes < 0).any():
            raise DataError(f"{name} is missing for {int((codes < 0).sum())} rows: every row needs one")
    count = int(codes.max(initial=0)) + 1
    if folds is not None or 2 <= count <= MAX_FOLDS:
        if count < 2:
            raise DataError("folds holds a single value: cross-fitting needs rows in at least two folds")
        return codes
    if count > MAX_FOLDS:
        before = np.cumsum(np.bincount(codes)) - 0.5 * np.bincount(codes)
        merged = np.minimum((before * MAX_FOLDS / n).astype(np.int64), MAX_FOLDS - 1)
        return np.unique(merged[codes], return_inverse=True)[1].astype(np.int64)
    hashed = (_mix(np.arange(n, dtype=np.uint64)) % np.uint64(HASHED_FOLDS)).astype(np.int64)
    codes = np.unique(hashed, return_inverse=True)[1].astype(np.int64)
    if n < 2 or codes.max() < 1:
        raise DataError(f"cross-fitting needs rows in at least two folds, found {n} row(s) in one: use fit and transform apart")
    return codes
