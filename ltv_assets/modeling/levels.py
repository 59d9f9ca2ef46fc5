"""Which share of rows will pay, as far as the newest days can tell.

What belongs here: the level of a window's days and how far the newest ones are followed; the level that out-of-fold rows were scored
from. What does not: what the level is used for (``gating``, ``regressor``). Next to read: ``gating.py``.

The payer rate of a day moves by itself. Followed too closely it brings one day's noise into the next; not followed at all it is as old
as the middle of the window. How far is learnt from the days: their differences beyond binomial noise say how much the level moves, and
how they succeed each other says whether a movement lasts (a local level in the sense of Harvey 1989) or was the day's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from ltv_assets.modeling.boosting import log_odds, sigmoid
from ltv_assets.modeling.dataset import Floats, Ints
from ltv_assets.modeling.folds import TimeFolds

LASTING_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a movement's variance that stay, the rest being the day's own: alike beforehand, and together as likely as no movement."""
MAX_SHIFT = float(np.log(4.0))
"""Largest shift of log-odds to a followed level; more would say that something else is wrong."""


@dataclass(frozen=True)
class Level:
    """Payer rate of a window's days and the one that is expected of the next.

    ``weights`` (a day, sum 1): how far each day is followed; in proportion to rows where nothing moved. ``movement_sd``: standard
    deviation of the change from a day to the next beyond binomial noise. ``lasting_share``: how much of its variance is expected to
    stay. ``rate`` = sum of weights x daily rates.
    """

    days: tuple[str, ...]
    rows: tuple[int, ...]
    payers: tuple[int, ...]
    weights: tuple[float, ...]
    movement_sd: float
    lasting_share: float

    @property
    def daily(self) -> Floats:
        """Payer rate of every day."""
        return np.asarray(self.payers, dtype=np.float64) / np.asarray(self.rows, dtype=np.float64)

    @property
    def rate(self) -> float:
        """The followed level."""
        return float(np.dot(self.weights, self.daily))

    @property
    def pooled(self) -> float:
        """Payer rate of the window, all rows alike."""
        return sum(self.payers) / sum(self.rows)

    def row_weights(self, period: Ints) -> Floats:
        """Weights of rows (n,), sum 1: those of a day share its weight."""
        share = np.bincount(period, minlength=len(self.days))
        weight = (np.asarray(self.weights) / np.maximum(share, 1))[period]
        return weight / weight.sum()

    def figures(self) -> dict[str, float]:
        """What a person reads first."""
        return {
            "level": self.rate,
            "level_window": self.pooled,
            "level_newest_day": float(self.daily[-1]),
            "level_newest_weight": self.weights[-1],
            "level_movement_sd": self.movement_sd,
            "level_lasting_share": self.lasting_share,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; ``daily``, ``level`` and ``window`` are there to be read."""
        days = zip(self.days, self.rows, self.payers, self.daily.tolist(), self.weights, strict=True)
        names = ("day", "rows", "payers", "payer_rate", "weight")
        return {
            "level": self.rate,
            "window": self.pooled,
            "movement_sd": self.movement_sd,
            "lasting_share": self.lasting_share,
            "daily": [dict(zip(names, day, strict=True)) for day in days],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Level:
        """Inverse of ``to_dict``."""
        days, rows, payers, weights = (tuple(d[k] for d in state["daily"]) for k in ("day", "rows", "payers", "weight"))
        return cls(days, rows, payers, weights, float(state["movement_sd"]), float(state["lasting_share"]))


def follow_level(payer: Floats, period: Ints, names: Sequence[str], *, follow: bool = True) -> Level:
    """The level of some days from their rows; payer (n,) 0 or 1, period (n,) codes of ``names`` in time order, each with rows.

    ``follow`` False: all rows alike.
    """
    rows = np.bincount(period, minlength=len(names)).astype(np.float64)
    payers = np.bincount(period, payer, minlength=len(names))
    weights, variance, lasting = rows / rows.sum(), 0.0, 0.0
    pooled = float(payers.sum() / rows.sum())
    if follow and len(names) > 1 and 0.0 < pooled < 1.0:
        noise = pooled * (1.0 - pooled) / rows
        variance = movement(payers / rows, noise)
        if variance > 0.0:
            weights, lasting = follow_days(payers / rows, noise, variance)
    whole_rows, whole_payers = (tuple(int(n) for n in values) for values in (rows, np.rint(payers)))
    return Level(tuple(names), whole_rows, whole_payers, tuple(weights.tolist()), float(np.sqrt(variance)), lasting)


def movement(values: Floats, noise: Floats) -> float:
    """Variance of the change from a day to the next beyond ``noise`` (variances of the values): method of moments, at least 0.

    Differences count by their precision, so a day of few rows says little.
    """
    expected = noise[1:] + noise[:-1]
    return max(0.0, float(np.sum(np.diff(values) ** 2 / expected - 1.0) / np.sum(1.0 / expected)))


def follow_days(values: Floats, noise: Floats, variance: float) -> tuple[Floats, float]:
    """(weights, lasting share): weights, sum 1, whose sum over the daily ``values`` estimates the level after the last of them.

    For each mix of lasting and passing movement these are generalised least squares on days whose covariance is known: the
    Kalman filter's with a diffuse start. A few days cannot tell the mixes apart, so they are averaged by their likelihood, among
    them "nothing moved". ``variance``: see `movement`.
    """
    age = np.arange(len(values))[::-1].astype(np.float64)
    walk = np.minimum.outer(age, age)
    mixes = [(0.0, 0.0), *((variance, share) for share in LASTING_SHARES)]
    log_posterior = np.log([0.5] + [0.5 / len(LASTING_SHARES)] * len(LASTING_SHARES))
    weights = np.empty((len(mixes), len(values)))
    for i, (moved, share) in enumerate(mixes):
        covariance = np.diag(noise + (1.0 - share) * moved / 2.0) + share * moved * walk
        precision = np.linalg.inv(covariance)
        information = precision.sum(axis=1)
        total = information.sum()
        weights[i] = information / total
        residual = values - weights[i] @ values
        log_posterior[i] -= 0.5 * (np.linalg.slogdet(covariance)[1] + np.log(total) + residual @ precision @ residual)
    posterior = np.exp(log_posterior - log_posterior.max())
    posterior /= posterior.sum()
    return posterior @ weights, float(posterior @ [share for _, share in mixes])


def on_window_level(odds: Floats, payer: Floats, folds: TimeFolds) -> Floats:
    """Out-of-fold log-odds (n,) as the model of the whole window would have given them.

    A fold's model knows the payer rate of the other folds only. Where days differ, that is another one than the final model's, and
    the newest days are the ones that are scored from the oldest level.
    """
    shift = np.zeros(folds.n_folds)
    for k in range(folds.n_folds):
        rate = float(payer[folds.taught(k)].mean())
        if 0.0 < rate < 1.0:
            shift[k] = log_odds(float(payer.mean())) - log_odds(rate)
    return odds + shift[folds.fold]


def scores_on_window_level(score: Floats, log_revenue: Floats, folds: TimeFolds, blended: Floats | None) -> Floats:
    """Out-of-fold scores (n,) as the final model would have given them: the same for scores, which are multiplied.

    log_revenue (n,): what they predict. ``blended`` (n,): the blend of out-of-fold components; a blend brings the level that its
    components were taught to that of the rows it is fitted on, which are the other folds' too. None: one component is served as it is.
    """
    factor = np.ones(folds.n_folds)
    whole = _taught_level(log_revenue, blended)
    for k in range(folds.n_folds):
        others = folds.taught(k)
        taught = _taught_level(log_revenue[others], None if blended is None else blended[others])
        if taught > 0.0:
            factor[k] = whole / taught
    return score * factor[folds.fold]


def _taught_level(log_revenue: Floats, blended: Floats | None) -> float:
    mean = float(log_revenue.mean())
    total = 0.0 if blended is None else float(blended.sum())
    return mean * (float(log_revenue.sum()) / total if total > 0.0 else 1.0)


def shifted(probability: Floats, shift: float) -> Floats:
    """Probabilities (n,) whose log-odds are moved by ``shift``."""
    return sigmoid(np.log(probability / (1.0 - probability)) + shift)


def shift_to(probability: Floats, weight: Floats, rate: float) -> float:
    """What to add to log-odds so that the weighted mean of probabilities becomes ``rate``; at most MAX_SHIFT either way.

    probability, weight (n,); weights sum to 1.
    """

    def gap(shift: float) -> float:
        return float(weight @ shifted(probability, shift)) - rate

    if gap(-MAX_SHIFT) >= 0.0:
        return -MAX_SHIFT
    return MAX_SHIFT if gap(MAX_SHIFT) <= 0.0 else float(brentq(gap, -MAX_SHIFT, MAX_SHIFT, xtol=1e-9))
