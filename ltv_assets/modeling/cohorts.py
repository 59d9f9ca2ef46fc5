"""Forecasts of groups of impressions: expected payers and revenue of a day, a country, a category, with 80 % intervals.

What belongs here: sums of rows by group, the noise around them, intervals, how the noise is learnt. What does not: files and partitions
(``training/cohorts.py``). Next to read: ``levels.py``, which says where the level of the next day is expected.

Two things make an outcome differ from its forecast. Single payers: given the probabilities, the number of payers is Poisson-binomial,
and each of them spends a heavy-tailed amount. And the level: whole days pay more or less than expected, and groups differ from their
day. The first follows from the scores and from what payers spent before; the second is learnt from the errors of past days.

Revenue is capped row by row at the model's ``cap_usd``, as ``expected_revenue_d7`` is: one payer beyond the cap can outweigh a whole
day, so no interval of the uncapped sum would be both honest and of use. What lies beyond is stated beside it (``tail_factor``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri

from ltv_assets.modeling.classifier import BuyerClassifier
from ltv_assets.modeling.dataset import Floats, Ints
from ltv_assets.modeling.evaluation.segments import ALL, OTHER, segment_labels
from ltv_assets.modeling.folds import TimeFolds
from ltv_assets.modeling.gating import BuyerGating
from ltv_assets.modeling.levels import Level, on_window_level, shift_to, shifted
from ltv_assets.modeling.regressor import RevenueRegressor

COVERAGE = 0.80
"""Share of outcomes that an interval is meant to hold; as many lie below it as above."""
MONEY_UNIT, PAYER_UNIT = 2.0**-24, 2.0**-30
"""Sums are made of whole multiples of these (a sixteen-millionth of a USD, a billionth of a payer), so that groups add up to their
total in every digit, in whatever order they are added."""
SCALES = np.concatenate([[0.0], np.geomspace(0.005, 0.75, 40)])
"""Standard deviations of a level's relative movement that are considered."""
DAY_SCALE, GROUP_SCALE, AMOUNT_SCALE = 0.20, 0.10, 0.05
"""Priors of standard deviations: half of those of the payers of whole days, and of groups against their day, are held to be below this
(half-Cauchy, Gelman 2006). That of revenue per payer is half-normal: amounts scatter so much that a heavy tail would decide."""
MIN_EXPECTED = 3.0
"""Groups of fewer expected payers say nothing about levels."""
MOST_OF_DAY = 0.95
"""Groups of a larger share of their day say nothing about how groups differ from it."""
AMOUNT_BINS, MIN_BIN_PAYERS, PRIOR_PAYERS = 5, 200, 20
EXPONENTIAL = (2.0, 6.0)
"""Second and third moment over powers of the mean of an exponential amount: what is assumed where payers are few."""


@dataclass(frozen=True)
class Amounts:
    """How amounts of payers scatter around what was expected of each: raw moments over powers of the mean, by expected amount.

    ``edges``: expected USD of a payer at which the next entry of ``second`` and ``third`` begins to hold.
    """

    edges: tuple[float, ...] = ()
    second: tuple[float, ...] = (EXPONENTIAL[0],)
    third: tuple[float, ...] = (EXPONENTIAL[1],)

    def of(self, amount_usd: Floats) -> tuple[Floats, Floats]:
        """(second, third) of payers from whom ``amount_usd`` (n,) is expected."""
        place = np.searchsorted(np.asarray(self.edges), amount_usd, side="right")
        return np.asarray(self.second)[place], np.asarray(self.third)[place]


def learn_amounts(probability: Floats, amount_usd: Floats, paid_usd: Floats) -> Amounts:
    """From rows' probability to pay, what is expected of a payer and what was paid (n,), USD, both capped; paid 0: no payer.

    Moments of what was paid over those of what was expected, so that sums over the rows have the moments that came: expected amounts
    that differ are part of what was paid and must not count twice. Few payers leave an exponential's moments in place.
    """
    payers = np.flatnonzero(paid_usd > 0.0)
    bins = int(np.clip(len(payers) // MIN_BIN_PAYERS, 1, AMOUNT_BINS))
    edges = np.unique(np.quantile(amount_usd[payers], np.arange(1, bins) / bins)) if bins > 1 else np.zeros(0)
    place = np.searchsorted(edges, amount_usd, side="right")
    moments = []
    for number in range(len(edges) + 1):
        rows = place == number
        paid = paid_usd[rows & (paid_usd > 0.0)]
        weight = len(paid) / (len(paid) + PRIOR_PAYERS)
        second, third = (
            weight * (_moment(paid, k) / _moment(amount_usd[rows], k, probability[rows]) if len(paid) else 0.0) + (1.0 - weight) * assumed
            for k, assumed in zip((2, 3), EXPONENTIAL, strict=True)
        )
        moments.append((max(second, 1.0), max(third, second**2, 1.0)))  # what every positive amount has at least
    return Amounts(tuple(edges.tolist()), *zip(*moments, strict=True))


def _moment(values: Floats, power: int, weights: Floats | None = None) -> float:
    """Raw moment of positive values over that power of their mean."""
    return float(np.average((values / np.average(values, weights=weights)) ** power, weights=weights))


@dataclass(frozen=True)
class Groups:
    """Which rows belong together: for each segment the code (n,) of a row's group, and the groups' values."""

    codes: Mapping[str, Ints]
    values: Mapping[str, tuple[str, ...]]

    def add_up(self, rows: Floats, unit: float) -> Floats:
        """Sums of ``rows`` (n,) by group, in the order of `listed`; exact in multiples of ``unit``."""
        whole = np.rint(rows / unit)
        parts = [np.bincount(self.codes[s], whole, minlength=len(self.values[s])) for s in self.codes]
        total: Floats = np.concatenate(parts).astype(np.float64) * unit
        return total

    def listed(self) -> tuple[list[str], list[str]]:
        """(segment, value) of every group."""
        pairs = [(s, value) for s in self.codes for value in self.values[s]]
        return [s for s, _ in pairs], [value for _, value in pairs]


def group_rows(segments: pd.DataFrame, *, min_rows: int, max_segments: int) -> Groups:
    """Groups of rows as the evaluation makes them: all, then the largest values of every column, the rest together."""
    codes: dict[str, Ints] = {ALL: np.zeros(len(segments), dtype=np.int64)}
    values: dict[str, tuple[str, ...]] = {ALL: (ALL,)}
    for column in segments.columns:
        labels = segment_labels(segments[column], min_rows, max_segments)
        used = np.unique(labels.codes)
        if [labels.categories[i] for i in used] == [OTHER]:
            continue  # no value has enough rows: the column says nothing that the total does not
        codes[str(column)] = np.searchsorted(used, labels.codes)
        values[str(column)] = tuple(str(labels.categories[i]) for i in used)
    return Groups(codes, values)


def same_groups(segments: pd.DataFrame, values: Mapping[str, tuple[str, ...]]) -> Groups:
    """The groups of a forecast, found in other rows: values that it did not name belong to ``(other)``, which is there if there are any."""
    codes: dict[str, Ints] = {ALL: np.zeros(len(segments), dtype=np.int64)}
    listed: dict[str, tuple[str, ...]] = {ALL: (ALL,)}
    for column in values:
        if column == ALL or column not in segments:
            continue
        labels = segment_labels(segments[column], 1, len(segments))
        names = pd.Index(values[column] if OTHER in values[column] else (*values[column], OTHER))
        place = names.get_indexer(pd.Index(labels.categories))
        codes[column] = np.where(place >= 0, place, names.get_loc(OTHER))[labels.codes]
        listed[column] = tuple(str(name) for name in names)
    return Groups(codes, listed)


SUMS = ("rows", "expected_payers", "expected_revenue_usd")
CUMULANTS = ("payers_2", "payers_3", "revenue_2", "revenue_3", "amount_variance", "log_nobody")


def sum_up(groups: Groups, probability: Floats, expected_usd: Floats, amounts: Amounts) -> pd.DataFrame:
    """One row per group: segment, value, rows, expected payers and revenue, and the cumulants of their noise at a known level.

    probability, expected_usd (n,): P(payer) and E[min(revenue, cap)] of every row. ``payers_2``, ``payers_3``, ``revenue_2``,
    ``revenue_3``: second and third cumulants; ``amount_variance``: the part of ``revenue_2`` that amounts make, given the payers;
    ``log_nobody``: log-probability that nobody pays.
    """
    p = np.clip(np.asarray(probability, dtype=np.float64), 0.0, 1.0 - 1e-9)
    mean = np.asarray(expected_usd, dtype=np.float64)
    amount = np.divide(mean, p, out=np.zeros_like(p), where=p > 0.0)
    second, third = amounts.of(amount)
    raw_2, raw_3 = mean * amount * second, mean * amount**2 * third
    segment, value = groups.listed()
    table = pd.DataFrame({"segment": segment, "value": value})
    table["rows"] = groups.add_up(np.ones(len(p)), 1.0).astype(np.int64)
    table["expected_payers"] = groups.add_up(p, PAYER_UNIT)
    table["expected_revenue_usd"] = groups.add_up(mean, MONEY_UNIT)
    by_row = (
        p * (1.0 - p),
        p * (1.0 - p) * (1.0 - 2.0 * p),
        raw_2 - mean**2,
        raw_3 - 3.0 * mean * raw_2 + 2.0 * mean**3,
        mean * amount * (second - 1.0),
        np.log1p(-p),
    )
    for name, values in zip(CUMULANTS, by_row, strict=True):
        parts = [np.bincount(groups.codes[s], values, minlength=len(groups.values[s])) for s in groups.codes]
        table[name] = np.concatenate(parts)
    return table


def observed(groups: Groups, revenue_usd: Floats, cap_usd: float) -> pd.DataFrame:
    """What came, by group in the order of `sum_up`: payers, revenue and revenue up to the cap of every row; revenue_usd (n,)."""
    sums = {
        "payers": groups.add_up((revenue_usd > 0.0).astype(np.float64), 1.0),
        "revenue_usd": groups.add_up(revenue_usd, MONEY_UNIT),
        "revenue_capped_usd": groups.add_up(np.minimum(revenue_usd, cap_usd), MONEY_UNIT),
    }
    return pd.DataFrame({**sums, "payers": sums["payers"].astype(np.int64)})


@dataclass(frozen=True)
class KnownRows:
    """Rows whose outcome is known: segments by column, and arrays (n,) of what was forecast of each and what came, in USD."""

    segments: pd.DataFrame
    probability: Floats
    expected_usd: Floats
    revenue_usd: Floats

    def take(self, index: Ints) -> KnownRows:
        """The chosen rows."""
        return KnownRows(self.segments.iloc[index], self.probability[index], self.expected_usd[index], self.revenue_usd[index])

    def compared(self, amounts: Amounts, cap_usd: float, *, min_rows: int, max_segments: int) -> pd.DataFrame:
        """Forecast (`sum_up`) and outcome (`observed`) by group."""
        groups = group_rows(self.segments, min_rows=min_rows, max_segments=max_segments)
        return pd.concat(
            [sum_up(groups, self.probability, self.expected_usd, amounts), observed(groups, self.revenue_usd, cap_usd)], axis=1
        )

    def amounts(self, cap_usd: float) -> Amounts:
        """How amounts scattered around what was expected of those who paid."""
        return learn_amounts(self.probability, self.expected_usd / self.probability, np.minimum(self.revenue_usd, cap_usd))


def out_of_fold_rows(
    classifier: BuyerClassifier,
    gating: BuyerGating,
    regressor: RevenueRegressor,
    segments: pd.DataFrame,
    revenue_usd: Floats,
    folds: TimeFolds,
) -> KnownRows:
    """A window's rows that were scored out of fold, with their forecast on the level of the whole window; revenue_usd (n,).

    A fold's models know the level of the other days only; left so, a day that paid more than the others would seem to have paid yet more.
    Probabilities add up to the payers of the window, as those that are served add up to the followed level: what a row's payer is
    expected to bring would else be another amount than in a forecast.
    """
    payer = (revenue_usd > 0.0).astype(np.float64)
    odds = on_window_level(classifier.oof["buyer_log_odds"], payer, folds)
    probability = np.minimum(classifier.probability(odds), gating.cap)
    expected = regressor.oof["expected_revenue"] * probability / gating.oof["capped_probability"]
    shift = shift_to(probability, np.full(len(payer), 1.0 / len(payer)), float(payer.mean()))
    return KnownRows(segments, np.minimum(shifted(probability, shift), gating.cap), expected, revenue_usd)


@dataclass(frozen=True)
class Movement:
    """Variance of a level's relative movement as the errors so far leave it, and how many of them there were."""

    variance: float
    errors: int = 0

    @property
    def sd(self) -> float:
        """Standard deviation of the log level."""
        return float(np.sqrt(self.variance))


def learn_movement(error: Floats, noise: Floats, spread: Floats | float = 1.0, *, scale: float, heavy: bool = True) -> Movement:
    """From relative errors (n,) whose variance is ``noise`` (n,) plus ``spread`` times that of the level: the mean of the posterior.

    Without any error it is the prior's: half-Cauchy with median ``scale`` where it is ``heavy``, else half-normal with that scale.
    """
    log_prior = -np.log1p((SCALES / scale) ** 2) if heavy else -0.5 * (SCALES / scale) ** 2
    log_posterior = log_prior + np.log(np.gradient(SCALES))
    variance = (
        np.maximum(noise, 1e-9)[:, None] + np.broadcast_to(np.asarray(spread, dtype=np.float64), np.shape(error))[:, None] * SCALES**2
    )
    log_posterior = log_posterior - 0.5 * np.sum(np.log(variance) + np.asarray(error)[:, None] ** 2 / variance, axis=0)
    posterior = np.exp(log_posterior - log_posterior.max())
    return Movement(float(posterior @ SCALES**2 / posterior.sum()), len(error))


def unknown_movement(scale: float, *, heavy: bool = True) -> Movement:
    """The movement of a level of which nothing was seen yet."""
    return learn_movement(np.zeros(0), np.zeros(0), scale=scale, heavy=heavy)


def relative_error(observed: Floats, expected: Floats, about: float = 0.0) -> Floats:
    """How far outcomes (n,) are from forecasts, in shares: about log(observed / expected), and fair where few were expected.

    Twice the difference of square roots (Anscombe 1948), whose variance is that of ``observed`` / expected**2.
    """
    return 2.0 * (np.sqrt((observed + about) / (expected + about)) - 1.0)


@dataclass(frozen=True)
class CohortNoise:
    """What makes outcomes of groups differ from their forecasts, next to the payers' luck.

    ``day``: share of payers of a whole day; ``amount``: revenue per payer of a whole day; ``groups`` and ``group_amounts`` by
    segment: a group against its day. ``followed``: what the noise of the followed level adds to the variance of a day ahead, as a share of
    ``day``'s. With every further day it grows by ``lasting_share``. ``days``: those that it was learnt from.
    """

    amounts: Amounts = Amounts()
    day: Movement = field(default_factory=lambda: unknown_movement(DAY_SCALE))
    amount: Movement = field(default_factory=lambda: unknown_movement(AMOUNT_SCALE, heavy=False))
    groups: Mapping[str, Movement] = field(default_factory=dict)
    group_amounts: Mapping[str, Movement] = field(default_factory=dict)
    followed: float = 1.0
    lasting_share: float = 0.5
    days: tuple[str, ...] = ()

    def payers_variance(self, segments: Sequence[str], days_ahead: int) -> Floats:
        """Variance of the relative level of payers for groups of these segments, ``days_ahead`` (at least 1) after the model's data."""
        steps = 1.0 + self.followed + self.lasting_share * max(days_ahead - 1, 0)
        return self.day.variance * steps + self._own(self.groups, segments, unknown_movement(GROUP_SCALE))

    def revenue_variance(self, segments: Sequence[str], days_ahead: int) -> Floats:
        """The same of revenue."""
        own = self.amount.variance + self._own(self.group_amounts, segments, unknown_movement(AMOUNT_SCALE, heavy=False))
        return self.payers_variance(segments, days_ahead) + own

    @staticmethod
    def _own(movements: Mapping[str, Movement], segments: Sequence[str], unknown: Movement) -> Floats:
        variance = {s: 0.0 if s == ALL else movements.get(s, unknown).variance for s in dict.fromkeys(segments)}
        return np.array([variance[s] for s in segments])

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> CohortNoise:
        """Inverse of ``to_json``."""
        state = json.loads(data)
        amounts = Amounts(**{name: tuple(values) for name, values in state["amounts"].items()})
        parts: dict[str, Any] = {name: Movement(**state[name]) for name in ("day", "amount")}
        parts |= {name: {s: Movement(**m) for s, m in state[name].items()} for name in ("groups", "group_amounts")}
        return cls(amounts, **parts, followed=state["followed"], lasting_share=state["lasting_share"], days=tuple(state["days"]))


def with_intervals(sums: pd.DataFrame, noise: CohortNoise, days_ahead: int) -> pd.DataFrame:
    """The forecast of every group: `sum_up`'s table with the ends of 80 % intervals.

    The level is gamma-distributed around 1, so that its cumulants and those of the sum combine; the ends are quantiles of the Pearson
    type III distribution with these three cumulants, which is within .02 of the exact share for four expected payers and more.
    """
    segments = sums["segment"].tolist()
    found = sums[["segment", "value", *SUMS]].copy()
    nobody = np.exp(sums["log_nobody"].to_numpy())
    tail = (1.0 - COVERAGE) / 2.0
    for target, unit, variance, atom in (
        ("payers", "", noise.payers_variance(segments, days_ahead), 2.0 * tail),  # half of those that are counted lie below
        ("revenue", "_usd", noise.revenue_variance(segments, days_ahead), tail),
    ):
        mean = sums[f"expected_{target}{unit}"].to_numpy()
        low, high = _ends(mean, sums[f"{target}_2"].to_numpy(), sums[f"{target}_3"].to_numpy(), variance, tail)
        found[f"{target}_low{unit}"] = np.where(nobody >= atom, 0.0, np.clip(low, 0.0, mean))
        found[f"{target}_high{unit}"] = np.maximum(high, mean)
    return found


def _ends(mean: Floats, second: Floats, third: Floats, level: Floats, tail: float) -> tuple[Floats, Floats]:
    """Quantiles ``tail`` and 1 - ``tail`` of sums with these cumulants at a level of mean 1 and variance ``level``."""
    variance = second + mean**2 * level
    skewed = third + 3.0 * mean * second * level + 2.0 * mean**3 * level**2
    sd = np.sqrt(variance)
    skewness = np.divide(skewed, sd**3, out=np.zeros_like(sd), where=sd > 0.0)
    shape = 4.0 / np.maximum(skewness, 1e-3) ** 2
    ends = [np.where(skewness > 1e-3, (gammaincinv(shape, q) - shape) / np.sqrt(shape), ndtri(q)) for q in (tail, 1.0 - tail)]
    return mean + sd * ends[0], mean + sd * ends[1]


def inside(compared: pd.DataFrame) -> pd.DataFrame:
    """Whether the outcome of each group lies in its interval, ends included: ``payers_inside``, ``revenue_inside``."""
    return pd.DataFrame(
        {
            "payers_inside": compared["payers"].between(compared["payers_low"], compared["payers_high"]),
            "revenue_inside": compared["revenue_capped_usd"].between(compared["revenue_low_usd"], compared["revenue_high_usd"]),
        }
    )


def totals_differ(forecast: pd.DataFrame) -> list[str]:
    """Segments whose groups do not add up to the total in every digit; none in what `sum_up` made."""
    total = forecast[forecast["segment"] == ALL].iloc[0]
    parts = forecast.groupby("segment", sort=False)[list(SUMS)].sum()
    return [str(s) for s, row in parts.iterrows() if any(row[name] != total[name] for name in SUMS)]


def compared_by_day(
    rows: KnownRows, day: Ints, names: Sequence[str], amounts: Amounts, cap_usd: float, *, min_rows: int, max_segments: int
) -> pd.DataFrame:
    """`KnownRows.compared` of each day, with ``day``: its name, and ``ahead`` False; day (n,): numbers of ``names``."""
    parts = [
        rows.take(np.flatnonzero(day == i)).compared(amounts, cap_usd, min_rows=min_rows, max_segments=max_segments).assign(day=name)
        for i, name in enumerate(names)
    ]
    return pd.concat(parts, ignore_index=True).assign(ahead=False)


def noise_of_level(errors: pd.DataFrame, amounts: Amounts, level: Level) -> CohortNoise:
    """`learn_noise` for the models of a window that follow ``level``."""
    return learn_noise(errors, amounts, followed=float(np.sum(np.square(level.weights))), lasting_share=level.lasting_share)


def learn_noise(errors: pd.DataFrame, amounts: Amounts, *, followed: float, lasting_share: float) -> CohortNoise:
    """From the errors of past days by group.

    ``errors``: segment, value, day, ``ahead`` (bool: forecast before the day; else out of fold among the other days), expected and
    observed payers and revenue, ``payers_2`` and ``amount_variance`` as `sum_up` has them. ``followed``,
    ``lasting_share``: see `CohortNoise`. A day that is there twice counts as it was forecast before it was seen.
    """
    known = errors[(errors["expected_payers"] >= MIN_EXPECTED) & (errors["expected_revenue_usd"] > 0.0)]
    last = known.sort_values("ahead", kind="stable").drop_duplicates(["day", "segment", "value"], keep="last")
    days, parts = last[last["segment"] == ALL], last[last["segment"] != ALL]
    payers, payers_noise = _payer_errors(days)
    inside = ~days["ahead"].to_numpy(dtype=bool)
    count = int(inside.sum())
    if count > 1:  # days that a model's own level was fitted on differ from their mean, which is one of them the less
        payers = np.where(inside, payers - payers[inside].mean(), payers)
    spread = np.where(inside, 1.0 - 1.0 / max(count, 2), 1.0 + followed)
    amount, amount_noise = _amount_errors(days)
    groups, group_amounts = {}, {}
    for segment, rows in parts.groupby("segment", sort=True):
        whole = days.set_index("day").reindex(rows["day"])
        groups[str(segment)] = learn_movement(*_against_day(_payer_errors, rows, whole, "expected_payers"), scale=GROUP_SCALE)
        own = _against_day(_amount_errors, rows, whole, "expected_revenue_usd")
        group_amounts[str(segment)] = learn_movement(*own, scale=AMOUNT_SCALE, heavy=False)
    return CohortNoise(
        amounts,
        learn_movement(payers, payers_noise, spread, scale=DAY_SCALE),
        learn_movement(*_finite(amount, amount_noise), scale=AMOUNT_SCALE, heavy=False),
        groups,
        group_amounts,
        followed,
        lasting_share,
        tuple(sorted(set(days["day"]))),
    )


def _against_day(
    errors: Callable[[pd.DataFrame], tuple[Floats, Floats]], rows: pd.DataFrame, whole: pd.DataFrame, expected: str
) -> tuple[Floats, Floats]:
    """How far groups are off beyond their days, where both are known: errors and variances of their noise.

    A group's payers are among those of its day, so the more of the day it is, the less the noise of one differs from the other's.
    """
    (own, noise), (shared, whole_noise) = errors(rows), errors(whole)
    share = rows[expected].to_numpy() / whole[expected].to_numpy()
    part = share < MOST_OF_DAY
    return _finite((own - shared)[part], (noise * (1.0 - 2.0 * share) + whole_noise)[part])


def _payer_errors(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    expected = rows["expected_payers"].to_numpy()
    return relative_error(rows["payers"].to_numpy(), expected, 0.375), rows["payers_2"].to_numpy() / expected**2


def _amount_errors(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Errors of revenue per payer; NaN where nobody paid."""
    payers, usd = rows["payers"].to_numpy(), rows["expected_revenue_usd"].to_numpy()
    per_payer = np.divide(rows["revenue_capped_usd"].to_numpy(), payers, out=np.full(len(rows), np.nan), where=payers > 0)
    return relative_error(per_payer, usd / rows["expected_payers"].to_numpy()), rows["amount_variance"].to_numpy() / usd**2


def _finite(error: Floats, noise: Floats) -> tuple[Floats, Floats]:
    known: NDArray[np.bool_] = np.isfinite(error) & np.isfinite(noise)
    return error[known], noise[known]
