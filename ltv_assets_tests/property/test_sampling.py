"""Plans depend on rows alone: not on their order, on chunks, or on other partitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ltv_assets.sampling import TargetHistogram, hash_uniform, plan_hhistus, plan_histos, row_hashes

amounts = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 1e6, allow_nan=False)), min_size=1, max_size=80)


def _plans(revenue: NDArray[np.float64], ids: list[str], histogram: TargetHistogram) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    hashes = row_hashes(ids)
    histos = plan_histos(revenue, hashes, histogram, beta=2.0, max_copies=5, seed=3)
    hhistus = plan_hhistus(revenue, hashes, histogram, beta=1.0, whale_quantile=0.9, seed=4)
    assert (histos.bin == hhistus.bin).all()
    assert ((hhistus.weight > 0) == hhistus.keep).all()
    return histos.multiplicity, hhistus.weight


@settings(max_examples=60, deadline=None)
@given(amounts, st.integers(0, 2**32 - 1))
def test_row_order_changes_no_plan(values: list[float], seed: int) -> None:
    revenue = np.array(values)
    ids = [f"r{i}" for i in range(len(values))]
    histogram = TargetHistogram.from_revenue(revenue, 8)
    order = np.random.default_rng(seed).permutation(len(values))
    straight = _plans(revenue, ids, histogram)
    shuffled = _plans(revenue[order], [ids[i] for i in order], histogram)
    assert all((a[order] == b).all() for a, b in zip(straight, shuffled, strict=True))


@settings(max_examples=60, deadline=None)
@given(amounts, st.integers(1, 20))
def test_counts_of_parts_add_up(values: list[float], bins: int) -> None:
    revenue = np.array(values)
    histogram = TargetHistogram.from_revenue(revenue, bins)
    cut = len(values) // 2
    parts = [histogram.counts(histogram.bin_of(part)) for part in (revenue[:cut], revenue[cut:])]
    whole = histogram.counts(histogram.bin_of(revenue))
    assert (sum(parts) == whole).all()
    assert whole.sum() == len(values)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 1e9, allow_nan=False), st.integers(1, 254))
def test_bins_respect_order_and_zero(top: float, bins: int) -> None:
    revenue = np.linspace(0.0, top, 50)
    histogram = TargetHistogram.from_revenue(revenue, bins)
    numbers = histogram.bin_of(revenue).astype(int)
    assert (np.diff(numbers) >= 0).all()
    assert ((numbers == 0) == (revenue == 0)).all()
    assert numbers.max(initial=0) <= bins


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=30), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_draws_lie_in_the_unit_interval_and_do_not_depend_on_neighbours(ids: list[str], seed: int, copy: int) -> None:
    together = hash_uniform(row_hashes(ids), seed, copy)
    assert ((together >= 0) & (together < 1)).all()
    alone = [hash_uniform(row_hashes([i]), seed, copy)[0] for i in ids]
    assert together.tolist() == alone
