"""Every figure against a second derivation: brute force over tie orders, loops written from the formula, scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import mean_squared_log_error, root_mean_squared_log_error

from ltv_assets.modeling.evaluation import metrics as m

SMALL = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 0.0, 1.0, 3.0, 10.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=n, max_size=n),
    )
)


def tie_orders(score: list[float]) -> list[tuple[int, ...]]:
    """All row orders by falling score: every arrangement of the tied rows."""
    return [p for p in itertools.permutations(range(len(score))) if all(score[a] >= score[b] for a, b in itertools.pairwise(p))]


def simulated(n: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.beta(0.3, 9, n)
    return np.where(rng.random(n) < p, rng.lognormal(2, 1.5, n), 0.0), p


def test_log_errors_equal_scikit_learn() -> None:
    y, p = simulated()
    assert m.msle(y, 3 * p) == pytest.approx(mean_squared_log_error(y, 3 * p))
    assert m.rmsle(y, 3 * p) == pytest.approx(root_mean_squared_log_error(y, 3 * p))
    assert m.rmsle(y, np.zeros_like(y)) == pytest.approx(math.sqrt(np.mean(np.log1p(y) ** 2)))


def test_capped_errors_cut_both_sides() -> None:
    y, prediction = np.array([0.0, 5.0, 1000.0]), np.array([1.0, 50.0, 0.0])
    assert m.rmse(y, prediction, 10.0) == pytest.approx(math.sqrt((1 + 25 + 100) / 3))
    assert m.mae(y, prediction, 10.0) == pytest.approx((1 + 5 + 10) / 3)
    assert m.mae(y, prediction) == pytest.approx((1 + 45 + 1000) / 3)
    assert m.bias_ratio(y, prediction, 10.0) == pytest.approx(51 / 15)
    assert m.tail_factor(y, 10.0) == pytest.approx(1005 / 15)


@settings(max_examples=80, deadline=None)
@given(SMALL)
def test_ranking_figures_are_the_average_over_tie_orders(case: tuple[list[float], list[float]]) -> None:
    revenue, score = np.array(case[0]), case[1]
    n, total = len(score), revenue.sum()
    orders = tie_orders(score)
    sums = np.mean([np.cumsum(revenue[list(o)]) for o in orders], axis=0)
    np.testing.assert_allclose(m.cumulative_capture(revenue, score, np.arange(1, n + 1)), sums)

    def gini(cumulative: np.ndarray) -> float:
        return cumulative.sum() / total - (n + 1) / 2

    if total > 0 and np.ptp(revenue) > 0:
        perfect = gini(np.cumsum(np.sort(revenue)[::-1]))
        assert m.gini_normalized(revenue, score) == pytest.approx(gini(sums) / perfect)
        shares = (0.01, 0.3, 0.5, 1.0)
        assert m.revenue_captures(revenue, score, shares) == pytest.approx([sums[math.ceil(s * n - 1e-9) - 1] / total for s in shares])
        assert m.revenue_capture(revenue, score, 0.5) == m.revenue_captures(revenue, score, shares)[2]
    else:
        assert math.isnan(m.gini_normalized(revenue, score))


def test_ranking_ends_and_direction() -> None:
    y, p = simulated()
    assert m.gini_normalized(y, y) == pytest.approx(1)
    assert m.gini_normalized(y, -y) == pytest.approx(-1, abs=0.1)
    assert m.gini_normalized(y, np.zeros_like(y)) == pytest.approx(0, abs=1e-12)
    assert m.revenue_capture(y, np.zeros_like(y), 0.1) == pytest.approx(0.1)
    assert m.revenue_capture(y, p, 1.0) == pytest.approx(1)
    share, gained = m.gain_curve(y, p)
    assert gained[0] == 0 and gained[-1] == pytest.approx(1) and (np.diff(gained) >= 0).all()
    assert m.revenue_capture(y, p, 0.1) == pytest.approx(gained[np.isclose(share, 0.1)][0])


def test_row_order_changes_no_ranking_figure() -> None:
    y, p = simulated()
    p = p.round(2)  # many ties
    order = np.random.default_rng(1).permutation(len(y))
    for figure in (m.gini_normalized, m.spearman_payers, lambda a, b: m.revenue_capture(a, b, 0.05), lambda a, b: m.ece(a > 0, b)):
        assert figure(y, p) == pytest.approx(figure(y[order], p[order]), rel=1e-12)


def test_spearman_equals_scipy_among_payers() -> None:
    y, p = simulated()
    assert m.spearman_payers(y, p.round(2)) == pytest.approx(spearmanr(y[y > 0], p[y > 0].round(2)).statistic)


def test_undefined_figures_are_nan_never_zero() -> None:
    none = np.zeros(50)
    p = np.linspace(0, 1, 50)
    undefined = [
        m.gini_normalized(none, p),
        m.spearman_payers(none, p),
        m.revenue_capture(none, p, 0.1),
        m.auc(none > 0, p),
        m.pr_auc(none > 0, p),
        m.mean_p_over_rate(none > 0, p),
        m.bias_ratio(none, p),
        m.tail_factor(none, 1.0),
        m.r2_log1p(none, p),
        m.attained_share(0.2, 0.2, 0.2),
        m.rmsle([], []),
        m.ece([], []),
        m.zero_rate([]),
        m.log_loss([], []),
        m.gate_cost_msle([], []),
        m.auc([True, True], [0.1, 0.2]),
        m.paired_bootstrap([], []).model.low,
    ]
    assert all(math.isnan(v) for v in undefined), undefined
    assert np.isnan(m.gain_curve(none, p)[1]).all()
    assert m.decile_table(none, p)["revenue_share"].isna().all()


def test_ece_equals_a_loop_over_bins() -> None:
    y, p = simulated(5003)
    flag = y > 0
    order = np.argsort(p)
    edges = np.linspace(0, len(p), 11).round().astype(int)
    expected = sum((b - a) / len(p) * abs(p[order[a:b]].mean() - flag[order[a:b]].mean()) for a, b in itertools.pairwise(edges))
    assert m.ece(flag, p) == pytest.approx(expected)
    assert m.ece(flag, np.full(len(p), flag.mean())) == pytest.approx(0, abs=1e-12)
    assert m.ece([0, 1], [0.5, 0.5]) == pytest.approx(0)


def test_reliability_intervals_cover_the_true_rate() -> None:
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.02, 0.4, 3000)
        table = m.reliability(rng.random(3000) < p, p)
        covered.append((table.low <= table.mean_probability) & (table.mean_probability <= table.high))
    assert 0.92 < np.mean(covered) < 0.98


def test_probability_figures_equal_hand_computation() -> None:
    flag, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    assert m.auc(flag, p) == pytest.approx(0.75)
    assert m.pr_auc(flag, p) == pytest.approx(0.8333333)
    assert m.log_loss(flag, p) == pytest.approx(-np.mean(np.log([0.9, 0.6, 0.35, 0.8])))
    assert m.mean_p_over_rate(flag, p) == pytest.approx(1.65 / 2)
    assert math.isfinite(m.log_loss([0, 1], [1.0, 0.0]))


def test_gate_cost_is_the_expected_increase_of_msle() -> None:
    rng = np.random.default_rng(0)
    score = rng.exponential(0.1, 400_000)
    probability = 0.05
    log_revenue = np.where(rng.random(score.size) < probability, score / probability, 0.0)  # E[L | x] = score
    gated = score < 0.2
    observed = np.mean((np.where(gated, 0, score) - log_revenue) ** 2) - np.mean((score - log_revenue) ** 2)
    assert m.gate_cost_msle(score, gated) == pytest.approx(np.mean(score**2 * gated))
    assert observed == pytest.approx(m.gate_cost_msle(score, gated), rel=0.1)


def test_attained_share_is_zero_for_the_constant_and_one_for_the_oracle() -> None:
    assert m.attained_share(0.21, 0.21, 0.16) == 0
    assert m.attained_share(0.16, 0.21, 0.16) == 1
    assert m.attained_share(0.22, 0.21, 0.16) < 0


def test_deciles_add_up_and_fall() -> None:
    y, p = simulated(5007)
    table = m.decile_table(y, p, expected=10 * p)
    assert table["rows"].sum() == len(y) and table["payers"].sum() == pytest.approx((y > 0).sum())
    assert table["revenue_usd"].sum() == pytest.approx(y.sum()) and table["cumulative_revenue_share"].iloc[-1] == pytest.approx(1)
    assert (np.diff(table["mean_score"]) <= 0).all()
    top = np.argsort(-p)[: table["rows"][0]]
    assert table["revenue_usd"][0] == pytest.approx(y[top].sum())
    assert table["mean_expected_usd"][0] == pytest.approx(10 * p[top].mean())
    assert table["lift"][0] == pytest.approx(y[top].mean() / y.mean())


@pytest.mark.parametrize("n", [800, 30_000])
def test_bootstrap_width_is_the_known_standard_error(n: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.chisquare(1, n)
    b = a + rng.normal(0, 0.1, n) ** 2
    found = m.paired_bootstrap(a, b, replicates=4000)
    se = a.std() / math.sqrt(n) / (2 * math.sqrt(a.mean()))
    assert (found.model.high - found.model.low) == pytest.approx(2 * 1.96 * se, rel=0.08)
    assert found.model.value == pytest.approx(math.sqrt(a.mean()))
    assert found.difference.low <= found.difference.value <= found.difference.high < 0
    assert (found.difference.high - found.difference.low) < 0.2 * (found.model.high - found.model.low)


def test_bootstrap_covers_the_truth_in_95_of_100() -> None:
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        interval = m.paired_bootstrap(rng.chisquare(1, 3000), np.ones(3000), replicates=300, seed=seed).model
        inside += interval.low <= 1.0 <= interval.high
    assert 0.91 <= inside / 300 <= 0.98


def test_bootstrap_is_repeatable_and_equal_predictions_do_not_differ() -> None:
    y, _ = simulated(20_000)
    losses = m.squared_log_errors(y, np.full(len(y), 0.1))
    assert m.paired_bootstrap(losses, losses[::-1], seed=3) == m.paired_bootstrap(losses, losses[::-1], seed=3)
    assert m.paired_bootstrap(losses, losses[::-1], seed=3) != m.paired_bootstrap(losses, losses[::-1], seed=4)
    same = m.paired_bootstrap(losses, losses).difference
    assert same.low == same.value == same.high == 0


def test_bootstrap_of_three_million_rows_draws_no_more_than_one_of_thirty_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of rows are resampled: a thousand in each of a thousand replicates, however many rows there are."""

    class Counting:
        def __init__(self, seed: int) -> None:
            self.generator = np.random.Generator(np.random.PCG64(seed))

        def permutation(self, n: int) -> NDArray[np.int64]:
            return self.generator.permutation(n)

        def integers(self, low: int, high: int, size: tuple[int, int]) -> NDArray[np.int64]:
            drawn.append(size[0] * size[1])
            return self.generator.integers(low, high, size)

    monkeypatch.setattr(np.random, "default_rng", Counting)
    for rows in (30_000, 3_000_000):
        drawn: list[int] = []
        losses = np.arange(rows, dtype=np.float64)
        m.paired_bootstrap(losses, losses)
        assert sum(drawn) == 1_000_000
