"""Target encodings: smoothed means of a target by category or pair, without each fold in turn.

What belongs here: the targets, sums by category and fold, empirical-Bayes shrinkage, counts. What does not: codes
(``category_map.py``), fold numbers (``folds.py``), which columns are encoded (``window_encoder.py``). Next to read:
``window_encoder.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from ltv_assets.core.errors import DataError
from ltv_assets.modeling.encoding.category_map import FIRST_KNOWN, UNSEEN, Floats, Ints

Targets: TypeAlias = Mapping[str, ArrayLike]


def revenue_targets(revenue: ArrayLike) -> dict[str, Floats]:
    """The two targets whose encodings models use: ``payer`` = 1{revenue > 0} and ``log_revenue`` = log1p(revenue).

    ``revenue`` is one-dimensional, in USD, finite and not negative; anything else raises ``DataError``.
    """
    values = np.asarray(revenue, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"revenue must be one-dimensional, found shape {values.shape}: pass the column of the first horizon alone")
    bad = int(np.count_nonzero(~np.isfinite(values) | (values < 0)))
    if bad:
        raise DataError(f"revenue has {bad} of {values.size} values that are negative, NaN or infinite: quarantine those rows first")
    return {"payer": (values > 0).astype(np.float64), "log_revenue": np.log1p(values)}


def empirical_bayes(n: Floats, total: Floats, squares: Floats, prior: Floats) -> Floats:
    """Category means shrunk towards a prior (Micci-Barreca 2001, eq. 4; random-effects moments for the strength).

    For a category with ``n`` rows, mean ``m`` and prior ``q``::

        encoding = q + (m - q) * n / (n + k),      k = within / between

    ``k`` is estimated per column and target by the method of moments of one-way random effects::

        within  = sum_c (squares_c - n_c m_c^2) / (N - C)
        between = max(0, (sum_c n_c (m_c - q_c)^2 - (C - 1) within) / (N - sum_c n_c^2 / N))

    so a column that carries no signal (``between`` = 0) is shrunk to its prior completely.

    Shapes: ``n``, ``total`` (sum of y) and ``squares`` (sum of y^2) are (B, L): B independent fits of L categories;
    ``prior`` broadcasts against them. Categories without rows get the prior. Returns (B, L).
    """
    mean = np.divide(total, n, out=np.broadcast_to(prior, n.shape).copy(), where=n > 0)
    deviation = mean - prior
    rows = n.sum(axis=1)
    categories = (n > 0).sum(axis=1)
    within = np.clip(squares - n * mean**2, 0.0, None).sum(axis=1) / np.maximum(rows - categories, 1.0)
    spread = (n * deviation**2).sum(axis=1) - (categories - 1) * within
    scale = rows - np.divide((n**2).sum(axis=1), rows, out=np.zeros_like(rows), where=rows > 0)
    between = np.divide(np.clip(spread, 0.0, None), scale, out=np.zeros_like(rows), where=(scale > 0) & (rows > categories))
    strength = np.divide(within, between, out=np.full_like(rows, np.inf), where=between > 0)[:, None]
    weight = np.divide(n, n + strength, out=np.zeros_like(n), where=n + strength > 0)
    return cast(Floats, prior + weight * deviation)


@dataclass(frozen=True)
class CategorySums:
    """Rows, sums and squares of a target per category: one line per left-out fold, and the whole window as the last line.

    A line for a fold is the window's sums minus the fold's own, so the work does not grow with the number of folds. The
    last line is summed without regard to folds, so its bits do not depend on them.
    """

    n: Floats
    total: Floats
    squares: Floats

    @classmethod
    def of(cls, levels: Ints, size: int, y: Floats, fold: Ints, folds: int, rows: Floats) -> Self:
        """Sums of a target; ``rows``: those of `left_out_rows` for the same levels."""
        known = ~np.isnan(y)
        if not known.all():
            levels, y, fold = levels[known], y[known], fold[known]
            rows = left_out_rows(levels, size, fold, folds)
        some = np.flatnonzero(y)  # nothing is added to a sum for the others, which are nearly all
        levels, y, fold = levels[some], y[some], fold[some]
        return cls(rows, *(_left_out(levels, size, weight, fold, folds) for weight in (y, y * y)))


def _left_out(levels: Ints, size: int, weight: Floats, fold: Ints, folds: int) -> Floats:
    """Weighted counts (folds + 1, size): without each fold in turn, then without none."""
    every = np.bincount(levels, weight, minlength=size)[None, :]
    own = np.bincount(fold * size + levels, weight, minlength=folds * size).reshape(folds, size)
    return np.vstack([every - own, every])


def left_out_rows(levels: Ints, size: int, fold: Ints, folds: int) -> Floats:
    """Rows of every level (folds + 1, size): without each fold in turn, then without none."""
    own = np.bincount(fold * size + levels, minlength=folds * size).reshape(folds, size)
    every = own.sum(axis=0, keepdims=True)
    return np.vstack([every - own, every]).astype(np.float64)


@dataclass(frozen=True)
class Encoding:
    """Encodings of one column or pair: a line per left-out fold, the whole window as the last line; (lines, levels)."""

    means: dict[str, Floats]
    log_count: Floats
    prior: dict[str, Floats]

    def last(self) -> Encoding:
        return Encoding({t: m[-1:] for t, m in self.means.items()}, self.log_count[-1:], {t: p[-1:] for t, p in self.prior.items()})


def log_counts(rows: Floats) -> Floats:
    """log1p of the rows of `left_out_rows`, left-out lines scaled up to the whole window so that training and scoring agree."""
    totals = rows.sum(axis=1, keepdims=True)
    return np.log1p(rows * np.divide(totals[-1:], totals, out=np.zeros_like(totals), where=totals > 0))


def encode_column(levels: Ints, size: int, targets: Mapping[str, Floats], fold: Ints, folds: int) -> Encoding:
    """Single columns shrink to the mean of all rows; a value no other fold has seen is encoded as unseen, as at scoring."""
    every = left_out_rows(levels, size, fold, folds)
    log_count = log_counts(every)
    log_count[:, UNSEEN] = 0.0
    means, priors = {}, {}
    for name, y in targets.items():
        sums = CategorySums.of(levels, size, y, fold, folds, every)
        rows = sums.n.sum(axis=1, keepdims=True)
        prior = np.divide(sums.total.sum(axis=1, keepdims=True), rows, out=np.zeros_like(rows), where=rows > 0)
        mean = empirical_bayes(sums.n, sums.total, sums.squares, prior)
        mean[:, FIRST_KNOWN:] = np.where(sums.n[:, FIRST_KNOWN:] > 0, mean[:, FIRST_KNOWN:], mean[:, [UNSEEN]])
        means[name], priors[name] = mean, prior
    return Encoding(means, log_count, priors)


def additive_prior(first: Floats, second: Floats, low: Floats, high: Floats, overall: Floats) -> Floats:
    """What two main effects predict for a pair, kept inside the range of those effects."""
    return cast(Floats, np.clip(first + second - overall, low, high))


def encoding_limits(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest encoding of either column, per line: (lines, 1) each."""
    low = np.minimum(first.min(axis=1), second.min(axis=1))
    high = np.maximum(first.max(axis=1), second.max(axis=1))
    return low[:, None], high[:, None]


def checked_targets(y: Targets, n: int) -> dict[str, Floats]:
    """Targets by name as float64; NaN stays (the row is left out of that target), infinities are refused."""
    out = {}
    for name, values in y.items():
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (n,):
            raise DataError(f"target {name!r} must have one value per row: expected shape ({n},), found {array.shape}")
        if np.isinf(array).any():
            raise DataError(f"target {name!r} is infinite in {int(np.isinf(array).sum())} rows: quarantine those rows first")
        out[name] = array
    if not out:
        raise DataError("y names no target: pass at least one, for instance revenue_targets(revenue)")
    return out
