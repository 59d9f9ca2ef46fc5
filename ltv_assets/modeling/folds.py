"""Folds in time: who may be scored by whom.

What belongs here: which fold a row is in, and the labels of rows that are scored out of fold. What does not: any fit. Next to read:
``design_matrix.py``.

Scheme: *leave periods out*. Periods are grouped into K runs of consecutive periods, and the rows of a run are scored by
models fitted on the other runs. Compared with forward chaining every row gets an out-of-fold score from models of nearly
full size, so the calibrator and the meta learner see three times as many payers. Rows of later days train models that
score earlier ones; this cannot leak a label, because a row's label is a function of its own user and days, and
encodings are refitted inside each fold.

The time-last fold is special: its models have seen nothing but the past. Tree counts are chosen on it, whether
the stacker is kept is decided on it. Calibration uses the other folds' rows, which neither trained nor stopped the boosters that
score them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltv_assets.modeling.dataset import Floats, InputError, Ints

MIN_ROWS = 4
"""Fewest rows of one period that can be divided in time: two blocks of two."""


@dataclass(frozen=True)
class TimeFolds:
    """fold : (n,) 0..n_folds-1 in time order. ``added``: the last fold is a day that came later: it was scored, but taught nobody."""

    fold: Ints
    n_folds: int
    added: bool = False

    @property
    def stopping(self) -> int:
        """The fold on which tree counts were chosen: the time-last of those that taught."""
        return self.n_folds - 1 - self.added

    @property
    def last_fold(self) -> NDArray[np.bool_]:
        """Rows of the fold ``stopping``, (n,)."""
        return self.fold == self.stopping

    def taught(self, k: int) -> NDArray[np.bool_]:
        """Rows that the models which score fold ``k`` learnt from, (n,)."""
        taught = self.fold != k
        return taught & (self.fold != self.n_folds - 1) if self.added else taught

    def split(self, k: int) -> tuple[Ints, Ints]:
        """Row numbers (train, held out) of fold ``k``."""
        return np.flatnonzero(self.taught(k)), np.flatnonzero(self.fold == k)

    def with_later_day(self, rows: int) -> TimeFolds:
        """These folds, and ``rows`` more rows at the end of a day that none of their models learnt from."""
        return TimeFolds(np.append(self.fold, np.full(rows, self.n_folds)), self.n_folds + 1, added=True)

    def earlier_split(self) -> tuple[Ints, Ints]:
        """Row numbers of the time-earlier and time-later part of what precedes the last fold."""
        before = np.flatnonzero(~self.last_fold)
        last = self.fold[before].max()
        if last == 0:  # two folds: the later part is the last third of the first, in row order
            cut = len(before) - max(1, len(before) // 3)
            return before[:cut], before[cut:]
        return before[self.fold[before] < last], before[self.fold[before] == last]


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """Labels of rows that are scored by models which did not see them; d7 (n,) in USD, period (n,) codes of the window's periods."""

    d7: Floats
    period: Ints
    folds: TimeFolds

    def __len__(self) -> int:
        return len(self.d7)

    @property
    def payer(self) -> Floats:
        """1.0 where revenue is positive, (n,)."""
        return (self.d7 > 0).astype(np.float64)

    @property
    def log_d7(self) -> Floats:
        """log1p of revenue, (n,)."""
        return np.log1p(self.d7)


def make_folds(period: Ints, n_folds: int) -> TimeFolds:
    """Group periods into at most ``n_folds`` runs of consecutive periods.

    Fewer periods than folds: one fold per period. One period only: contiguous blocks in row order, with a warning.
    Raises InputError when without the rows of a fold fewer than four are left, all in one period.
    """
    given = np.asarray(period, dtype=np.int64)
    period = _periods_or_blocks(given, n_folds)
    used = np.unique(period)
    groups = np.array_split(used, min(n_folds, len(used)))
    fold = np.zeros(len(period), dtype=np.int64)
    for k, group in enumerate(groups):
        fold[np.isin(period, group)] = k
        left = given[~np.isin(period, group)]
        if len(left) < MIN_ROWS and len(np.unique(left)) < 2:
            raise InputError(
                f"{len(given)} rows in {len(np.unique(given))} period(s) are too few for folds in time: without those of one fold "
                f"{len(left)} are left in one period, expected at least {MIN_ROWS}; widen the window"
            )
    return TimeFolds(fold=fold, n_folds=len(groups))


def _periods_or_blocks(period: Ints, n_folds: int) -> Ints:
    if period.min() < period.max():
        return period
    n = len(period)
    warnings.warn("all rows are in one period: folds are contiguous blocks in row order", UserWarning, stacklevel=4)
    return time_blocks(n, max(n_folds, 3))


def time_blocks(n: int, count: int) -> Ints:
    """Block number of each of ``n`` rows: at most ``count`` contiguous blocks in row order, with two rows or more each."""
    blocks = min(count, n // 2)
    if blocks < 2:
        raise InputError(f"found {n} sample(s) in one period; folds in time need at least {MIN_ROWS} rows: widen the window")
    return np.arange(n) * blocks // n
