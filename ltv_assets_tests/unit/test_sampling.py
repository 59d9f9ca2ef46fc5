"""What the sampling plans promise for known inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ltv_assets.sampling import TargetHistogram, hash_uniform, plan_hhistus, plan_histos, row_hashes
from ltv_assets.sampling.histogram import keep_probability
from ltv_assets.sampling.zeros import AUXILIARY_DRAW, SERVED_DRAW, draw_zeros


def _revenue(rows: int = 20_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(rows) < 0.05, rng.lognormal(1.5, 1.2, rows), 0.0)


def test_zero_has_a_bin_of_its_own_and_the_rest_equal_widths_in_log() -> None:
    histogram = TargetHistogram(n_bins=4, max_log=4.0)
    revenue = np.expm1(np.array([0.0, 1e-12, 0.5, 1.0, 1.0 + 1e-9, 2.5, 3.999, 4.0, 9.0]))
    assert histogram.bin_of(revenue).tolist() == [0, 1, 1, 1, 2, 3, 4, 4, 4]
    assert histogram.edges.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_largest_spender_stays_in_the_top_bin() -> None:
    revenue = _revenue()
    histogram = TargetHistogram.from_revenue(revenue, 20)
    assert histogram.bin_of(revenue)[revenue.argmax()] == 20


def test_histogram_without_payers_has_one_bin_in_use() -> None:
    histogram = TargetHistogram.from_revenue(np.zeros(5), 10)
    assert histogram.counts(histogram.bin_of(np.zeros(5))).tolist() == [5] + [0] * 10
    assert histogram.bin_of(np.array([3.0])).tolist() == [1]


def test_keep_probability_is_the_papers_formula() -> None:
    counts = np.array([0, 10, 40], dtype=np.int64)
    assert np.allclose(keep_probability(counts, 2.0), [1.0, np.exp(-0.5), np.exp(-2.0)])


def test_histos_repeats_payers_more_than_the_others_and_counts_are_whole() -> None:
    revenue = _revenue()
    plan = plan_histos(
        revenue, row_hashes(np.arange(len(revenue))), TargetHistogram.from_revenue(revenue, 20), beta=3.0, max_copies=3, seed=0
    )
    assert plan.multiplicity.dtype == np.uint16
    assert plan.multiplicity.min() == 1
    assert plan.multiplicity.max() <= 4
    assert plan.multiplicity[revenue > 0].mean() > 3.0
    assert abs(plan.multiplicity[revenue == 0].mean() - (1 + np.exp(-3.0))) < 0.02


def test_histos_treats_all_payers_alike_so_that_only_the_prior_moves() -> None:
    """The prior correction is exact only if the expected multiplicity of a payer does not depend on the amount."""
    revenue = _revenue(200_000)
    plan = plan_histos(
        revenue, row_hashes(np.arange(len(revenue))), TargetHistogram.from_revenue(revenue, 20), beta=3.0, max_copies=3, seed=0
    )
    paid = revenue > 0
    small = paid & (revenue < np.median(revenue[paid]))
    large = paid & ~small
    assert plan.multiplicity[small].mean() / plan.multiplicity[large].mean() == pytest.approx(1.0, abs=0.03)


def test_hhistus_keeps_whales_drops_non_payers_and_weights_undo_the_draw() -> None:
    revenue = _revenue(100_000)
    histogram = TargetHistogram.from_revenue(revenue, 20)
    plan = plan_hhistus(revenue, row_hashes(np.arange(len(revenue))), histogram, beta=1.0, whale_quantile=0.95, seed=0)
    paid = revenue > 0
    assert not plan.keep[~paid].any()
    assert (plan.weight[~plan.keep] == 0).all()
    whales = revenue >= np.quantile(revenue[paid], 0.95)
    assert plan.keep[whales].all()
    assert (plan.weight[whales] == 1).all()
    assert plan.keep[paid].mean() < 0.8
    assert plan.weight.sum() / paid.sum() == pytest.approx(1.0, abs=0.05)
    assert (plan.weight * np.log1p(revenue)).sum() / np.log1p(revenue).sum() == pytest.approx(1.0, abs=0.05)


def test_plans_of_a_day_without_payers_are_trivial() -> None:
    zero, hashes = np.zeros(50), row_hashes(np.arange(50))
    histogram = TargetHistogram(10, 5.0)
    assert not plan_hhistus(zero, hashes, histogram, beta=1.0, whale_quantile=0.9, seed=0).keep.any()
    assert len(plan_histos(zero, hashes, histogram, beta=3.0, max_copies=3, seed=0)) == 50


def test_draws_are_the_same_in_another_process() -> None:
    code = (
        "from ltv_assets.sampling import hash_uniform, row_hashes; "
        "print(repr(hash_uniform(row_hashes(['a', 'b', '\u00fc']), 7, 2).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"})
    assert done.stdout.strip() == repr(hash_uniform(row_hashes(["a", "b", "\u00fc"]), 7, 2).tolist())


def test_draws_are_uniform_and_independent_between_seeds_and_copies() -> None:
    hashes = row_hashes(np.arange(50_000))
    first = hash_uniform(hashes, 0, 0)
    counts = np.histogram(first, bins=20, range=(0, 1))[0]
    assert ((counts - 2500) ** 2 / 2500).sum() < 43.8  # chi-square, 19 degrees of freedom, one in a thousand
    for other in (hash_uniform(hashes, 0, 1), hash_uniform(hashes, 1, 0), hash_uniform(hashes, 1, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.02


def test_identifiers_are_compared_by_their_text() -> None:
    assert (row_hashes([1, 2]) == row_hashes(["1", "2"])).all()


class TestZeros:
    def test_payers_stay_and_zeros_are_weighed_back_exactly(self) -> None:
        rng = np.random.default_rng(0)
        hashes, payer, x = row_hashes(np.arange(100_000)), rng.random(100_000) < 0.03, rng.normal(1.0, 1.0, 100_000)
        draw = draw_zeros(payer, hashes, 0, 20_000, SERVED_DRAW)
        assert draw is not None
        assert set(np.flatnonzero(payer)) <= set(draw.rows)
        assert len(draw.rows) == pytest.approx(20_000, rel=0.03)
        assert (draw.weight[payer[draw.rows]] == 1.0).all()
        zeros = ~payer[draw.rows]
        np.testing.assert_allclose(draw.weight[zeros], 1.0 / draw.share, rtol=1e-6)
        assert draw.weight.sum() == pytest.approx(100_000, rel=0.02)
        assert draw.weight[zeros] @ x[draw.rows][zeros] == pytest.approx(x[~payer].sum(), rel=0.03)

    def test_order_of_rows_changes_no_draw_and_seeds_differ(self) -> None:
        hashes, payer = row_hashes(np.arange(5000)), np.arange(5000) % 40 == 0
        order = np.random.default_rng(1).permutation(5000)
        first, second = draw_zeros(payer, hashes, 3, 1000, SERVED_DRAW), draw_zeros(payer[order], hashes[order], 3, 1000, SERVED_DRAW)
        assert first is not None and second is not None
        assert sorted(order[second.rows]) == first.rows.tolist()
        assert draw_zeros(payer, hashes, 4, 1000, SERVED_DRAW).rows.tolist() != first.rows.tolist()

    def test_two_draws_of_the_same_rows_are_independent(self) -> None:
        """Drawn among rows that were drawn: what is weighed back twice still adds up."""
        hashes, payer = row_hashes(np.arange(200_000)), np.arange(200_000) % 50 == 0
        first = draw_zeros(payer, hashes, 0, 50_000, SERVED_DRAW)
        assert first is not None
        second = draw_zeros(payer[first.rows], hashes[first.rows], 0, 12_000, AUXILIARY_DRAW)
        assert second is not None
        assert (first.weight[second.rows] * second.weight).sum() == pytest.approx(200_000, rel=0.03)

    def test_nothing_is_drawn_where_all_rows_fit_or_most_pay(self) -> None:
        hashes = row_hashes(np.arange(1000))
        assert draw_zeros(np.arange(1000) < 30, hashes, 0, 1000, SERVED_DRAW) is None
        assert draw_zeros(np.arange(1000) < 700, hashes, 0, 800, SERVED_DRAW) is None
        crowded = draw_zeros(np.arange(1000) < 300, hashes, 0, 100, SERVED_DRAW)
        assert crowded is not None and 520 < len(crowded.rows) < 680
