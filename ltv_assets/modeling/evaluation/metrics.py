"""The figures by which predictions are judged: small pure functions of arrays, each with its formula.

What belongs here: one number, one curve or one table from a truth and a prediction. What does not: which figures are
reported for which rows (``segments.py``), pictures (``plots/``), anything that fits.

Two conventions hold everywhere. A figure that is undefined for the rows at hand (no payer, one class, no revenue) is NaN,
never 0. Ranking figures do not depend on the order in which tied scores happen to stand: they are the average over all
orders of the tied rows, computed exactly, so a score that is zero for most rows is neither punished nor rewarded by luck.
Next to read: ``segments.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

# SciPy, scikit-learn and pandas are imported by the figures that need them: the names of figures are shown without.
if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

NAN = float("nan")


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else NAN


# ---------------------------------------------------------------------- errors


def squared_log_errors(revenue: ArrayLike, prediction: ArrayLike) -> Floats:
    """(log1p(prediction) - log1p(revenue))^2 per row; both in USD, not negative."""
    return cast(Floats, (np.log1p(_floats(prediction)) - np.log1p(_floats(revenue))) ** 2)


def msle(revenue: ArrayLike, prediction: ArrayLike) -> float:
    """Mean squared error of log1p: mean((log1p(prediction) - log1p(revenue))^2). NaN without rows."""
    losses = squared_log_errors(revenue, prediction)
    return float(losses.mean()) if losses.size else NAN


def rmsle(revenue: ArrayLike, prediction: ArrayLike) -> float:
    """Root of ``msle``: the contest's figure.

    >>> round(rmsle([0.0, np.e - 1], [0.0, 0.0]), 4)
    0.7071
    """
    return math.sqrt(msle(revenue, prediction))


def rmse(revenue: ArrayLike, prediction: ArrayLike, cap_usd: float = math.inf) -> float:
    """sqrt(mean((prediction - revenue)^2)) in USD, both first cut at ``cap_usd`` (one whale decides the uncut figure)."""
    error = np.minimum(_floats(prediction), cap_usd) - np.minimum(_floats(revenue), cap_usd)
    return math.sqrt(float(np.mean(error**2))) if error.size else NAN


def mae(revenue: ArrayLike, prediction: ArrayLike, cap_usd: float = math.inf) -> float:
    """mean(|prediction - revenue|) in USD, both first cut at ``cap_usd``."""
    error = np.minimum(_floats(prediction), cap_usd) - np.minimum(_floats(revenue), cap_usd)
    return float(np.mean(np.abs(error))) if error.size else NAN


def r2_log1p(revenue: ArrayLike, prediction: ArrayLike) -> float:
    """1 - MSLE / Var(log1p(revenue)); NaN when revenue does not vary."""
    from sklearn.metrics import r2_score

    truth = np.log1p(_floats(revenue))
    if truth.size < 2 or np.ptp(truth) == 0:
        return NAN
    return float(r2_score(truth, np.log1p(_floats(prediction))))


def bias_ratio(revenue: ArrayLike, expected: ArrayLike, cap_usd: float = math.inf) -> float:
    """sum(expected) / sum(min(revenue, cap_usd)): 1 when predicted money adds up; NaN without revenue."""
    return _ratio(float(_floats(expected).sum()), float(np.minimum(_floats(revenue), cap_usd).sum()))


def tail_factor(revenue: ArrayLike, cap_usd: float) -> float:
    """sum(revenue) / sum(min(revenue, cap_usd)) >= 1: how much money lies above the cap; NaN without revenue."""
    values = _floats(revenue)
    return _ratio(float(values.sum()), float(np.minimum(values, cap_usd).sum()))


def attained_share(msle_model: float, msle_constant: float, msle_oracle: float) -> float:
    """(MSLE_constant - MSLE_model) / (MSLE_constant - MSLE_oracle): 0 = no better than a constant, 1 = best possible.

    NaN where the oracle does not beat the constant, since there is then nothing to attain.
    """
    return _ratio(msle_constant - msle_model, msle_constant - msle_oracle)


# ---------------------------------------------------------------------- ranking


def gini_normalized(revenue: ArrayLike, score: ArrayLike) -> float:
    """Gini of revenue ordered by score over that of the perfect order: 1 perfect, 0 random, negative when reversed.

    With r_i the mean rank of row i by falling score (ties share their mean, which equals averaging over tie orders)::

        G(score) = sum_i revenue_i (n + 1 - r_i) / sum_i revenue_i - (n + 1) / 2,    figure = G(score) / G(revenue)

    NaN without revenue or when all revenues are equal.
    """
    truth, values = _floats(revenue), _floats(score)
    total = float(truth.sum())
    if truth.size < 2 or total <= 0 or np.ptp(truth) == 0:
        return NAN
    paid, middle = np.flatnonzero(truth), (truth.size + 1) / 2
    perfect = float(truth[paid] @ _mean_ranks(truth, paid)) / total - middle
    return (float(truth[paid] @ _mean_ranks(values, paid)) / total - middle) / perfect


def _mean_ranks(values: Floats, of: NDArray[np.int64]) -> Floats:
    """Mean ranks, 1 = smallest, of a few of many values: sorting values alone is several times faster than ranking them all."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values[of]) + np.searchsorted(ordered, values[of], side="right") + 1) / 2


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Correlation of mean ranks; NaN for fewer than two rows or a constant side."""
    from scipy.stats import rankdata

    a, b = _floats(first), _floats(second)
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return NAN
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def spearman_payers(revenue: ArrayLike, score: ArrayLike) -> float:
    """``spearman`` of revenue and score among rows with revenue > 0."""
    truth, values = _floats(revenue), _floats(score)
    paying = truth > 0
    return spearman(truth[paying], values[paying])


def _by_falling_score(score: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of rows by falling score, and the end position of each run of equal scores in it."""
    order = np.argsort(-score)  # not stable, and faster: only the ends of runs are ever used
    ordered = score[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1 if ordered.size else np.zeros(0, np.int64)
    return order, ends


def cumulative_capture(values: ArrayLike, score: ArrayLike, rows: ArrayLike) -> Floats:
    """Expected sum of ``values`` in the top ``rows`` rows by score, averaged over the orders of tied scores.

    Within a run of ties every order is equally likely, so the expected cumulative sum is linear between the run's ends.
    """
    return _captured((_floats(values),), score, rows)[0]


def _captured(columns: Sequence[Floats], score: ArrayLike, rows: ArrayLike) -> list[Floats]:
    """`cumulative_capture` of several columns by one score, which is sorted once."""
    order, ends = _by_falling_score(_floats(score))
    at, wanted = np.concatenate([[0], ends]), _floats(rows)
    return [np.interp(wanted, at, np.concatenate([[0.0], np.cumsum(values[order])[ends - 1]])) for values in columns]


def revenue_captures(revenue: ArrayLike, score: ArrayLike, shares: Sequence[float]) -> tuple[float, ...]:
    """Share of all revenue in the ceil(share * n) rows with the highest score, for every share of rows; NaN without revenue.

    Tied rows count as in `cumulative_capture`, from the lowest score of each top alone: finding it takes a fraction of sorting all.
    """
    truth, values = _floats(revenue), _floats(score)
    tops = [math.ceil(share * truth.size - 1e-9) for share in shares]
    total, paid = float(truth.sum()), np.flatnonzero(truth)
    amounts, scores = truth[paid], values[paid]
    places = [values.size - top for top in tops if top > 0]
    ordered = np.partition(values, places) if places else values

    def caught(top: int) -> float:
        if top <= 0:
            return 0.0
        lowest = ordered[values.size - top]
        tied = (top - np.count_nonzero(values > lowest)) / np.count_nonzero(values == lowest)
        return float(amounts[scores > lowest].sum() + tied * amounts[scores == lowest].sum())

    return tuple(_ratio(caught(top), total) for top in tops)


def revenue_capture(revenue: ArrayLike, score: ArrayLike, share: float) -> float:
    """`revenue_captures` of one share."""
    return revenue_captures(revenue, score, (share,))[0]


def gain_curve(revenue: ArrayLike, score: ArrayLike, points: int = 201) -> tuple[Floats, Floats]:
    """Share of rows (0..1, ``points`` values, best scores first) and the share of revenue they hold; NaN without revenue."""
    truth = _floats(revenue)
    share = np.linspace(0.0, 1.0, points)
    total = float(truth.sum())
    if total <= 0:
        return share, np.full(points, NAN)
    return share, cumulative_capture(truth, score, share * truth.size) / total


def decile_table(revenue: ArrayLike, score: ArrayLike, expected: ArrayLike | None = None, bins: int = 10) -> pd.DataFrame:
    """What each tenth of the rows, best scores first, was worth.

    Columns: ``decile`` (1 = highest scores), ``rows``, ``mean_score``, ``mean_expected_usd`` (only with ``expected``),
    ``mean_revenue_usd``, ``payers``, ``payer_rate``, ``revenue_usd``, ``revenue_share``, ``cumulative_revenue_share``,
    ``lift`` (mean revenue over the overall mean). Tied rows are spread evenly, so counts of payers may be fractional.
    """
    import pandas as pd

    truth, values = _floats(revenue), _floats(score)
    edges = np.linspace(0, truth.size, bins + 1).round()
    rows = np.diff(edges)

    def mean(of: Floats) -> Floats:
        return np.divide(of, rows, out=np.full(bins, NAN), where=rows > 0)

    columns = [truth, (truth > 0).astype(np.float64), values] + ([] if expected is None else [_floats(expected)])
    money, payers, scores, *foreseen = (np.diff(caught) for caught in _captured(columns, values, edges))
    total = float(truth.sum())
    table = pd.DataFrame({"decile": np.arange(1, bins + 1), "rows": rows.astype(np.int64), "mean_score": mean(scores)})
    if expected is not None:
        table["mean_expected_usd"] = mean(foreseen[0])
    table["mean_revenue_usd"] = mean(money)
    table["payers"] = payers
    table["payer_rate"] = mean(payers)
    table["revenue_usd"] = money
    share = money / total if total > 0 else np.full(bins, NAN)
    table["revenue_share"] = share
    table["cumulative_revenue_share"] = np.cumsum(share)
    table["lift"] = mean(money) / (total / truth.size) if total > 0 else NAN
    return table


# ---------------------------------------------------------------------- probabilities


def auc(payer: ArrayLike, probability: ArrayLike) -> float:
    """Area under the ROC curve (scikit-learn); NaN when only one class is there."""
    from sklearn.metrics import roc_auc_score

    flag = np.asarray(payer, dtype=bool)
    return float(roc_auc_score(flag, _floats(probability))) if flag.any() and not flag.all() else NAN


def pr_auc(payer: ArrayLike, probability: ArrayLike) -> float:
    """Average precision (scikit-learn); NaN without payers."""
    from sklearn.metrics import average_precision_score

    flag = np.asarray(payer, dtype=bool)
    return float(average_precision_score(flag, _floats(probability))) if flag.any() else NAN


def log_loss(payer: ArrayLike, probability: ArrayLike) -> float:
    """-mean(y log p + (1 - y) log(1 - p)), p kept one float64 epsilon away from 0 and 1 (scikit-learn); NaN without rows."""
    from sklearn.metrics import log_loss

    flag = np.asarray(payer, dtype=bool)
    return float(log_loss(flag, np.clip(_floats(probability), 0.0, 1.0), labels=[False, True])) if flag.size else NAN


@dataclass(frozen=True)
class Reliability:
    """Equal-count bins by rising probability: rows, mean probability, observed rate and its 95 % Wilson interval."""

    rows: Floats
    mean_probability: Floats
    rate: Floats
    low: Floats
    high: Floats


def reliability(payer: ArrayLike, probability: ArrayLike, bins: int = 10) -> Reliability:
    """Observed against predicted rate in at most ``bins`` bins of equally many rows; ties are spread evenly."""
    flag, p = _floats(payer), _floats(probability)
    edges = np.unique(np.linspace(0, p.size, bins + 1).round())
    rows = np.diff(edges)
    mean, rate = (np.diff(caught) / rows for caught in _captured((p, flag), -p, edges))
    return Reliability(rows, mean, rate, *wilson_interval(rate, rows))


def wilson_interval(rate: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """95 % score interval of a proportion (Wilson 1927), elementwise; ``rows`` are the trials, successes need not be whole."""
    z2 = 1.959963984540054**2
    centre = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    half = np.sqrt(z2 * np.clip(rate * (1 - rate) / rows + z2 / (4 * rows**2), 0, None)) / (1 + z2 / rows)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def ece(payer: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error, sum_b rows_b / n * |mean p_b - rate_b| over equal-count bins; NaN without rows."""
    table = reliability(payer, probability, bins)
    if not table.rows.size:
        return NAN
    return float(np.average(np.abs(table.mean_probability - table.rate), weights=table.rows))


def mean_p_over_rate(payer: ArrayLike, probability: ArrayLike) -> float:
    """mean(p) / share of payers: 1 when calibrated in the large; NaN without payers."""
    return _ratio(float(_floats(probability).sum()), float(_floats(payer).sum()))


# ---------------------------------------------------------------------- gate


def zero_rate(values: ArrayLike) -> float:
    """Share of rows that are exactly zero; NaN without rows."""
    array = np.asarray(values)
    return float(np.mean(array == 0)) if array.size else NAN


def gate_cost_msle(score: ArrayLike, gated: ArrayLike) -> float:
    """mean(score^2 1{gated}), ``score`` = log1p of the ungated prediction: what setting those rows to zero adds to MSLE.

    The increase observed on labels is mean((2 L - score) score 1{gated}) with L = log1p(revenue); its expectation is this
    figure exactly when score = E[L | x]. It needs no labels, so the gate can be priced before the truth is known.
    """
    values = _floats(score)
    return float(np.mean(np.where(np.asarray(gated, dtype=bool), values**2, 0.0))) if values.size else NAN


# ---------------------------------------------------------------------- uncertainty


@dataclass(frozen=True)
class Interval:
    """A figure with the 95 % percentile interval of its bootstrap distribution; all NaN without rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedBootstrap:
    """RMSLE of a model, of its reference, and their difference (negative = the model is better)."""

    model: Interval
    reference: Interval
    difference: Interval


def paired_bootstrap(
    losses: ArrayLike, reference_losses: ArrayLike, *, replicates: int = 1000, blocks: int = 1000, seed: int = 0
) -> PairedBootstrap:
    """95 % intervals of sqrt(mean(losses)) for two predictions of the same rows, and of their difference.

    Rows are resampled with replacement, the same rows for both predictions, so what both find hard cancels out of the
    difference (Efron and Tibshirani 1993, section 13.3, percentile intervals). Above ``blocks`` rows the rows are first
    dealt at random into ``blocks`` equal hands and hands are resampled instead: sums of independent rows have the same
    variance per row, the interval's width is off by about 1 / sqrt(2 blocks) (2 % at 1000), and millions of rows cost no
    more than a thousand. ``losses`` are squared errors of log1p; same seed and rows, same intervals.
    """
    model, reference = _floats(losses), _floats(reference_losses)
    n = model.size
    if n == 0:
        nothing = Interval(NAN, NAN, NAN)
        return PairedBootstrap(nothing, nothing, nothing)
    rng = np.random.default_rng(seed)
    columns = np.column_stack([model, reference, np.ones(n)])
    if n > blocks:
        hand = rng.permutation(n) % blocks
        columns = np.column_stack([np.bincount(hand, columns[:, j], minlength=blocks) for j in range(3)])
    draws = np.empty((replicates, 3))
    chunk = max(1, 2_000_000 // columns.shape[0])
    for start in range(0, replicates, chunk):
        stop = min(start + chunk, replicates)
        picked = rng.integers(0, columns.shape[0], (stop - start, columns.shape[0]))
        draws[start:stop] = np.stack([columns[:, j][picked].sum(axis=1) for j in range(3)], axis=1)
    roots = np.sqrt(draws[:, :2] / draws[:, 2:])
    here = math.sqrt(float(model.mean())), math.sqrt(float(reference.mean()))

    def interval(value: float, sample: Floats) -> Interval:
        low, high = np.quantile(sample, [0.025, 0.975])
        return Interval(value, float(low), float(high))

    return PairedBootstrap(
        interval(here[0], roots[:, 0]), interval(here[1], roots[:, 1]), interval(here[0] - here[1], roots[:, 0] - roots[:, 1])
    )


def outcome_figures(compared: Mapping[str, ArrayLike]) -> dict[str, float]:
    """How good the forecasts of some groups were; ``compared`` has the columns of ``cohort_outcome``, each (n,).

    ``coverage_payers``, ``coverage_revenue``: share of groups whose outcome lies in its interval; ``bias_payers``, ``bias_revenue``:
    expected / came; ``error_payers``, ``error_revenue``: sum of absolute errors / sum of what came, which weighs a group by its size.
    NaN where nothing came.
    """
    figures = {"groups": float(len(np.asarray(compared["payers"])))}
    for target, came, unit in (("payers", "payers", ""), ("revenue", "revenue_capped_usd", "_usd")):
        expected, outcome = (np.asarray(compared[name], dtype=np.float64) for name in (f"expected_{target}{unit}", came))
        total = float(outcome.sum())
        figures[f"coverage_{target}"] = float(np.mean(np.asarray(compared[f"{target}_inside"], dtype=np.float64)))
        figures[f"bias_{target}"] = float(expected.sum()) / total if total else math.nan
        figures[f"error_{target}"] = float(np.abs(expected - outcome).sum()) / total if total else math.nan
    return figures
