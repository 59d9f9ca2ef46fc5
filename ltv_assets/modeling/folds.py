"""Folds in time: who may be scored by whom.

What belongs here: which fold a row is in, which rows stop the boosters. What does not: any fit. Next to read: ``design``.

Scheme: *leave periods out*. Periods are grouped into K runs of consecutive periods, and the rows of a run are scored by
models fitted on the other runs. Compared with forward chaining every row gets an out-of-fold score from models of nearly
full size, so the calibrator and the meta learner see three times as many payers. Rows of later days train models that
score earlier ones; this cannot leak a label, because a row's label is a function of its own user and days, and
encodings are refitted inside each fold. Decisions *about* models (which calibration, whether the stacker is kept, the
gate's cut-off) use the time-last fold only, whose models have seen nothing but the past.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltv_assets.errors import DataError
from ltv_assets.modeling.window import Ints


@dataclass(frozen=True)
class TimeFolds:
    """fold : (n,) 0..n_folds-1 in time order. stop : (n,) rows on which tree counts are chosen; they lie in the time-last part of
    what the last fold's models train on, and are left out of calibration. last_period : (n,) the last inner day.
    """

    fold: Ints
    n_folds: int
    stop: NDArray[np.bool_]
    last_period: NDArray[np.bool_]

    @property
    def last_fold(self) -> NDArray[np.bool_]:
        """Rows of the time-last fold, (n,)."""
        return self.fold == self.n_folds - 1

    def split(self, k: int) -> tuple[Ints, Ints]:
        """Row numbers (train, held out) of fold ``k``."""
        return np.flatnonzero(self.fold != k), np.flatnonzero(self.fold == k)

    def stop_split(self) -> tuple[Ints, Ints]:
        """Row numbers (train, stop): both precede the last fold."""
        return np.flatnonzero(~self.stop & ~self.last_fold), np.flatnonzero(self.stop)


def make_folds(period: Ints, n_folds: int) -> TimeFolds:
    """Group periods into at most ``n_folds`` runs of consecutive periods.

    Fewer periods than folds: one fold per period. One period only: contiguous blocks in row order, with a warning. The
    stopping rows are the last period before the last fold, or, when only one period lies there, its last third.
    Raises DataError when there are fewer than two rows per block.
    """
    period, last_period = _periods_or_blocks(np.asarray(period, dtype=np.int64), n_folds)
    used = np.unique(period)
    groups = np.array_split(used, min(n_folds, len(used)))
    fold = np.zeros(len(period), dtype=np.int64)
    for k, group in enumerate(groups):
        fold[np.isin(period, group)] = k
    return TimeFolds(fold=fold, n_folds=len(groups), stop=_stop_rows(period, fold, len(groups)), last_period=last_period)


def _periods_or_blocks(period: Ints, n_folds: int) -> tuple[Ints, NDArray[np.bool_]]:
    last_period = period == period.max()
    if not last_period.all():
        return period, last_period
    n = len(period)
    blocks = max(n_folds, 3)
    if n < 2 * blocks:
        raise DataError(f"{n} rows in one period cannot be split into {blocks} blocks in time: train on at least {2 * blocks} rows")
    warnings.warn("all rows are in one period: folds are contiguous blocks in row order", UserWarning, stacklevel=4)
    block = np.arange(n) * blocks // n
    return block, block == blocks - 1


def _stop_rows(period: Ints, fold: Ints, n_folds: int) -> NDArray[np.bool_]:
    before = fold < n_folds - 1
    periods = np.unique(period[before])
    if len(periods) > 1:
        return before & (period == periods[-1])
    rows = np.flatnonzero(before)
    stop = np.zeros(len(period), dtype=bool)
    stop[rows[len(rows) - max(1, len(rows) // 3) :]] = True
    return stop
