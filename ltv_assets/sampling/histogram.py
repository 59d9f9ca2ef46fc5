"""The histogram of the target: one bin for zero, equal-width bins of log1p(revenue) for the rest.

What belongs here: edges, bin numbers, counts and their sums. What does not: sampling by bin (``histos``, ``hhistus``).
Equal width is essential: with quantile bins every bin is equally full, and large spenders are not rare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class TargetHistogram:
    """Bin 0 holds revenue == 0; bins 1..n_bins split (0, max] into equal widths of log1p(revenue).

    ``max_log`` is the largest log1p(revenue) of the training rows; larger values fall into the top bin.
    """

    n_bins: int
    max_log: float

    @classmethod
    def from_revenue(cls, revenue: ArrayLike, n_bins: int) -> TargetHistogram:
        """Take the range from training rows (USD, finite, non-negative)."""
        y = np.asarray(revenue, dtype=np.float64)
        return cls(n_bins=n_bins, max_log=float(np.log1p(y.max())) if y.size else 0.0)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The n_bins + 1 edges of the positive bins, in log1p(USD)."""
        return np.linspace(0.0, self.max_log, self.n_bins + 1)

    def bin_of(self, revenue: ArrayLike) -> NDArray[np.uint8]:
        """Bin number of each revenue; shape (n,)."""
        y = np.asarray(revenue, dtype=np.float64)
        if self.max_log <= 0.0:
            return (y > 0).astype(np.uint8)
        position = np.ceil(np.log1p(y) / self.max_log * self.n_bins)
        # A positive amount below one rounding step would fall into bin 0, that of non-payers.
        return np.where(y > 0, np.clip(position, 1, self.n_bins), 0).astype(np.uint8)

    def counts(self, bins: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Rows per bin, length n_bins + 1; the counts of several partitions add up to those of their union."""
        return np.bincount(bins, minlength=self.n_bins + 1).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"n_bins": self.n_bins, "max_log": self.max_log}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> TargetHistogram:
        """Inverse of ``to_dict``."""
        return cls(n_bins=int(state["n_bins"]), max_log=float(state["max_log"]))


def keep_probability(counts: NDArray[np.int64], beta: float) -> NDArray[np.float64]:
    """``exp(-beta * count / max_count)`` for each bin: near 1 for rare bins, ``exp(-beta)`` for the fullest one."""
    return np.exp(-beta * counts / max(int(counts.max(initial=0)), 1))
