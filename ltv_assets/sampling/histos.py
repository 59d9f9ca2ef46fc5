"""HistOS: over-sampling of rare target bins, as integer multiplicities.

What belongs here: multiplicities. What does not: copies of rows, weights of the regressor (``hhistus``).
Source: Aminian, Ribeiro, Gama, "Histogram approaches for imbalanced data streams regression" (2025). The histogram is
that of the revenue: the 0/1 flag has two bins only, so sampling by it has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltv_assets.sampling.draws import hash_uniform
from ltv_assets.sampling.histogram import TargetHistogram, keep_probability

COPY_DECAY = 1.02
"""Each further copy of a row is less likely by this factor."""


@dataclass(frozen=True, slots=True)
class HistosPlan:
    """One entry per row, in row order: ``bin`` (uint8) and ``multiplicity`` (uint16, at least 1)."""

    bin: NDArray[np.uint8]
    multiplicity: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.bin)


def plan_histos(
    revenue: ArrayLike, hashes: NDArray[np.uint64], histogram: TargetHistogram, *, beta: float, max_copies: int, seed: int
) -> HistosPlan:
    """Multiplicities of one partition's rows.

    A row in a bin with keep probability q gets ``1 + extra`` entries: while a draw is below q one more copy is added
    and q is divided by ``COPY_DECAY``, up to ``max_copies`` extra ones. Counts are those of the partition alone, so
    no partition's labels influence another's plan. All positive bins are rare compared with bin 0, so payers get
    nearly the same expected multiplicity and the shift of the class prior can be corrected exactly.
    """
    bins = histogram.bin_of(revenue)
    q = keep_probability(histogram.counts(bins), beta)[bins]
    multiplicity = np.ones(len(bins), dtype=np.uint16)
    alive = np.arange(len(bins))
    for copy in range(max_copies):
        alive = alive[hash_uniform(hashes[alive], seed, copy) < q[alive] / COPY_DECAY**copy]
        if not len(alive):
            break
        multiplicity[alive] += 1
    return HistosPlan(bin=bins, multiplicity=multiplicity)
