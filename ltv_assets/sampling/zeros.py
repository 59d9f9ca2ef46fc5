"""Zeros that are drawn and weighed back: every payer is kept, of the rows that look alike some.

What belongs here: which rows without revenue are kept and how much each counts. What does not: the fit. 97 % of rows are zeros, and
a booster learns from the rare class (He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook"). A kept zero has
weight 1/q (Horvitz and Thompson 1952), so no expectation moves and nothing has to be undone. It is HHISTUS for the bin of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltv_assets.sampling.draws import hash_uniform

SERVED_DRAW, AUXILIARY_DRAW = 0x0A0F, 0x0A10
"""Separate the draw for served boosters, and that for auxiliary ones among its rows, under the same seed."""


@dataclass(frozen=True, slots=True)
class ZeroDraw:
    """``rows``: numbers of the kept rows, ascending; ``weight`` (float32, as long): 1 or, for a drawn zero, 1 / ``share``."""

    rows: NDArray[np.int64]
    weight: NDArray[np.float32]
    share: float


def draw_zeros(always: NDArray[np.bool_], hashes: NDArray[np.uint64], seed: int, rows: int, number: int) -> ZeroDraw | None:
    """About ``rows`` rows: all those that are ``always`` kept (n,), and as many others as there is room for, by hash of (seed, row_id).

    ``number``: which draw, so that two of them on the same rows are independent. At least as many others as are always kept are drawn;
    None when all rows fit.
    """
    n, flagged = len(always), int(np.count_nonzero(always))
    others = n - flagged
    wanted = max(rows - flagged, flagged)
    if n <= rows or wanted >= others:
        return None
    share = wanted / others
    kept = np.flatnonzero(always | (hash_uniform(hashes, seed, number) < share))
    return ZeroDraw(kept, np.where(always[kept], 1.0, 1.0 / share).astype(np.float32), share)
