"""HHISTUS: under-sampling of crowded target bins among payers, with the inverse-probability weights.

What belongs here: which payers are kept and how much each counts. What does not: the fit. Source: Aminian, Ribeiro,
Gama, "Histogram approaches for imbalanced data streams regression" (2025). A kept row has weight 1/P (Horvitz and
Thompson 1952), so weighted sums stay unbiased; whales are always kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltv_assets.sampling.draws import hash_uniform
from ltv_assets.sampling.histogram import TargetHistogram, keep_probability


@dataclass(frozen=True, slots=True)
class HhistusPlan:
    """One entry per row, in row order: ``bin`` (uint8), ``keep`` (bool) and ``weight`` (float32; 0 where not kept)."""

    bin: NDArray[np.uint8]
    keep: NDArray[np.bool_]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.bin)


def plan_hhistus(
    revenue: ArrayLike, hashes: NDArray[np.uint64], histogram: TargetHistogram, *, beta: float, whale_quantile: float, seed: int
) -> HhistusPlan:
    """Keep flags and weights of one partition's rows; rows with revenue 0 are never kept.

    ``P = exp(-beta * count / max_count)`` over the positive bins of this partition; a payer is kept when its draw lies
    below P. Payers in the top bin, and those at or above ``whale_quantile`` of the partition's payers, are kept with
    weight 1.
    """
    y = np.asarray(revenue, dtype=np.float64)
    bins = histogram.bin_of(y)
    counts = histogram.counts(bins)
    counts[0] = 0
    probability = keep_probability(counts, beta)[bins]
    payer = bins > 0
    if payer.any():
        whale = payer & ((bins == histogram.n_bins) | (y >= np.quantile(y[payer], whale_quantile)))
        probability = np.where(whale, 1.0, probability)
    keep = payer & (hash_uniform(hashes, seed) < probability)
    return HhistusPlan(bin=bins, keep=keep, weight=np.where(keep, 1.0 / probability, 0.0).astype(np.float32))
