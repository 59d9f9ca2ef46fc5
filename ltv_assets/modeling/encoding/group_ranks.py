"""Ranks of past spend within a country or category.

What belongs here: thinned sorted values of each group, mid-ranks, distances to the median. What does not: which columns are
ranked (``window_encoder.py``). Next to read: ``window_encoder.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ltv_assets.modeling.dataset import signed_log
from ltv_assets.modeling.encoding.category_map import UNSEEN, Floats, Ints

RANK_GRID = 256


@dataclass(frozen=True)
class GroupRanks:
    """Sorted values of a spend column per level of a group column, thinned to RANK_GRID points, and their medians.

    Slot 0 holds all rows together; ``slot[level]`` is 0 for levels with too few values of their own.
    """

    slot: Ints
    start: Ints
    values: Floats
    median: Floats

    @classmethod
    def fit(cls, values: NDArray[np.float32], groups: Ints, size: int, min_count: int) -> Self:
        """From values that are present and sorted, and their levels: a stable sort by level keeps them sorted in each."""
        counts = np.bincount(groups, minlength=size)
        own = np.flatnonzero(counts >= max(min_count, 2))
        own = own[own != UNSEEN]  # rare and unseen values have nothing in common: they are ranked among all rows
        slot = np.zeros(size, np.int64)
        slot[own] = np.arange(1, own.size + 1)
        keys = slot[groups].astype(np.uint16 if own.size < 2**16 else np.int64)  # numpy sorts small integers in linear time
        by_group = np.argsort(keys, kind="stable")[np.count_nonzero(keys == 0) :]
        stacked = np.concatenate([values, values[by_group]]).astype(np.float64)
        n = np.concatenate([[values.size], counts[own]])
        first = np.concatenate([[0], np.cumsum(n)[:-1]])
        kept = np.minimum(n, RANK_GRID)
        start = np.concatenate([[0], np.cumsum(kept)])
        step = np.arange(start[-1]) - np.repeat(start[:-1], kept)
        grid = stacked[np.repeat(first, kept) + ((2 * step + 1) * np.repeat(n, kept)) // np.maximum(2 * np.repeat(kept, kept), 1)]
        median = 0.5 * (stacked[first + (n - 1) // 2] + stacked[first + n // 2]) if values.size else np.zeros(1)
        return cls(slot, start.astype(np.int64), grid, median)

    def rank(self, spend: NDArray[np.float32], levels: Ints) -> Floats:
        """Mid-rank (share below + half the share equal) among the training values of the same group; NaN where missing."""
        out = np.full(spend.size, np.nan)
        rows = np.flatnonzero(~np.isnan(spend))
        if rows.size and self.values.size:
            slot = self.slot[levels[rows]]
            low, high = self.start[slot], self.start[slot + 1]
            value = spend[rows].astype(np.float64)
            below = self._bisect(value, low, high, strict=True)
            upto = self._bisect(value, low, high, strict=False)
            out[rows] = (0.5 * (below + upto) - low) / (high - low)
        return out

    def _bisect(self, value: Floats, low: Ints, high: Ints, *, strict: bool) -> Ints:
        """``searchsorted`` of every value inside its own segment [low, high), all rows at once."""
        low, high = low.copy(), high.copy()
        for _ in range(int(np.max(high - low)).bit_length()):
            middle = np.minimum((low + high) // 2, self.values.size - 1)
            at = self.values[middle]
            right = (low < high) & ((at < value) if strict else (at <= value))
            low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
        return low

    def deviation(self, spend: NDArray[np.float32], levels: Ints) -> Floats:
        """Signed-log distance to the group's median, s(v) - s(median) with s(v) = sign(v) log1p(|v|); NaN where missing."""
        return signed_log(spend.astype(np.float64)) - signed_log(self.median)[self.slot[levels]]


def rank_name(spend: str, group: str) -> str:
    """Name of the column with the ranks of a spend column within a group column."""
    return f"{spend}__rank_in_{group}"
