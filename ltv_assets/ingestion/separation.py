"""How well one column alone tells payers from everybody else: the figures by which a leaked label is recognised.

Pure: arrays in, two figures out. What does not belong here: reading files, verdicts. Next to read: ``monitoring/leaks.py``, which asks it
of flattened days, and ``profile/``, which asks it of raw ones.

A feature known in time rarely comes near either bound. A column that is written after the outcome does: a coupon that only buyers get
(``exclusive`` near 1, also where few buyers have it), or a status that becomes "customer" (``auc`` near 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_ROWS = 30
"""With fewer unusual rows nothing is said about who has them."""


@dataclass(frozen=True, slots=True)
class Separation:
    """``auc`` of payers against others by the column alone, 0.5 to 1, a gap being the smallest or the largest value.

    ``exclusive``: of the rows whose value is not the usual one, 1 - (share of non-payers) / (share of non-payers of all rows), which is 0
    if they pay as often as everybody, 1 if nobody else has such a value. ``payer_share`` and ``rows`` are of the same rows.
    """

    auc: float
    exclusive: float
    payer_share: float
    rows: int

    def beyond(self, auc_max: float, exclusive_max: float) -> bool:
        """True if one of the two figures is above its bound."""
        return self.auc > auc_max or self.exclusive > exclusive_max

    def said(self) -> str:
        """The figures in words, the telling one first."""
        who = f"{self.payer_share:.0%} of the {self.rows} rows that have a value of their own pay"
        return f"{who}, AUC {self.auc:.3f}" if self.exclusive > self.auc else f"AUC {self.auc:.3f}, {who}"


def separate_numbers(values: NDArray[np.float64], payer: NDArray[np.bool_], usual: float | None = None) -> Separation:
    """Separation by numbers (n,), NaN for gaps. ``usual``: the value that says nothing; None means the most frequent one, gaps included."""
    gap = np.isnan(values)
    if usual is None:
        distinct, counts = np.unique(values[~gap], return_counts=True)
        usual = float(distinct[counts.argmax()]) if len(distinct) and counts.max() > gap.sum() else np.nan
    unusual = ~gap if np.isnan(usual) else gap | (values != usual)
    present = values[~gap]
    low, high = (present.min() - 1.0, present.max() + 1.0) if len(present) else (0.0, 0.0)
    auc = max(_auc(np.where(gap, fill, values), payer) for fill in (low, high))
    return _with(auc, unusual, payer)


def separate_codes(codes: NDArray[Any], payer: NDArray[np.bool_], usual: int | None = None) -> Separation:
    """Separation by categories (n,), whole numbers, -1 for gaps. A category is ranked by the payer rate of the other half of the rows."""
    codes = np.asarray(codes, dtype=np.int64) + 1
    if usual is None:
        usual = int(np.bincount(codes).argmax()) - 1 if len(codes) else -1
    rate, size = payer.mean() if len(payer) else 0.0, int(codes.max(initial=0)) + 1
    half, score = np.arange(len(codes)) % 2 == 0, np.zeros(len(codes))
    for rows in (half, ~half):
        paid, count = np.bincount(codes[rows], payer[rows], size), np.bincount(codes[rows], minlength=size)
        score[~rows] = ((paid + 10 * rate) / (count + 10))[codes[~rows]]
    return _with(_auc(score, payer), codes != usual + 1, payer)


def _with(auc: float, unusual: NDArray[np.bool_], payer: NDArray[np.bool_]) -> Separation:
    rows, rate = int(unusual.sum()), float(payer.mean()) if len(payer) else 0.0
    share = float(payer[unusual].mean()) if rows else 0.0
    exclusive = 1.0 - (1.0 - share) / (1.0 - rate) if rows >= MIN_ROWS and rate < 1.0 else 0.0
    return Separation(auc, exclusive, share, rows)


def _auc(score: NDArray[np.float64], payer: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, the better of both directions; 0.5 where one side is empty."""
    from scipy.stats import rankdata

    paid = int(payer.sum())
    if paid == 0 or paid == len(payer):
        return 0.5
    above = (rankdata(score)[payer].sum() - paid * (paid + 1) / 2) / (paid * (len(payer) - paid))
    return float(max(above, 1.0 - above))
