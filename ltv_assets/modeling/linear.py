"""Linear base learners on preprocessed inputs.

What belongs here: three linear models with an elastic net's penalty (Zou and Hastie 2005): logistic regression of the payer flag,
log1p(revenue) among payers, log1p(revenue) on all rows; the choice of their penalties. What does not: the shaping of their inputs
(``preprocessing.py``), their blend (``blend.py``). Next to read: ``base_learners.py``.

Why they are here: where effects add up in the log-odds, trees need thousands of rows to learn a straight line. The two-part
product ``sigmoid(linear) x linear`` follows such laws with a few hundred coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from ltv_assets.core.config import LinearConfig
from ltv_assets.modeling.boosting import log_odds, sigmoid
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import Design, FloatMatrix, Matrix
from ltv_assets.modeling.preprocessing import BLOCK_ROWS, ShapedRows, Shaper, Steps, missed_steps

SCREEN_Z = 2.0
"""Columns enter the logistic regression when their correlation with the payer flag exceeds this many standard errors."""

LOGISTIC_VALUES = 100_000_000
"""The logistic regression holds at most about so many values, 400 MB: beyond that all payers and evenly drawn zeros, weighed back."""

STRENGTHS_PAYERS = (10.0, 6.0, 4.0, 2.5, 1.5, 1.0, 0.6)
STRENGTHS_DIRECT = (6.0, 2.0, 0.6, 0.2)
"""Penalties of the elastic nets of amounts and of all rows, in standard errors: the share of L1 of them is what an input has to exceed.
A standard error falls with the square root of the rows, and so does the best penalty: what suits a fold suits all rows."""

TOLERANCE = 3e-6
"""The search ends at a step that lowers the loss by less than this share of it, well above what products in float32 leave uncertain."""
MAX_STEPS, FIRST_STEPS = 30, 2
"""Steps of one search at most; those on the curvature of the prior, which lead to the place whose curvature is kept."""


@dataclass(frozen=True, eq=False)
class LinearModels:
    """Coefficients of the three linear models on one shaper's columns; the last row of each is the intercept."""

    shaper: Shaper
    odds: Floats
    payers: Floats
    direct: Floats
    log_range: tuple[float, float]

    @cached_property
    def _in_use(self) -> tuple[Shaper, Floats]:
        """The shaper without inputs whose coefficients are all zero, and the coefficients of the others (3, inputs + 1)."""
        coefficients = np.stack([self.odds, self.payers, self.direct])
        kept = (coefficients != 0).any(axis=0)
        kept[-1] = True
        return self.shaper.only(kept[:-1]), coefficients[:, kept]

    def parts(self, matrix: Matrix) -> tuple[Floats, Floats, Floats]:
        """(log-odds of paying, log1p revenue if paying, direct log1p score), each (n,)."""
        shaper, coefficients = self._in_use
        odds, payers, direct = ShapedRows(shaper, matrix).lines(list(coefficients)).T
        return odds, np.clip(payers, *self.log_range), np.clip(direct, 0.0, None)

    def scores(self, matrix: Matrix) -> tuple[Floats, Floats]:
        """(two-part score ``p x log revenue``, direct score), each (n,)."""
        odds, payers, direct = self.parts(matrix)
        return sigmoid(odds) * payers, direct

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "shaper": self.shaper.to_dict(),
            "odds": self.odds.tolist(),
            "payers": self.payers.tolist(),
            "direct": self.direct.tolist(),
            "log_range": list(self.log_range),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LinearModels:
        """Inverse of ``to_dict``."""
        low, high = state["log_range"]
        odds, payers, direct = (np.asarray(state[k], dtype=np.float64) for k in ("odds", "payers", "direct"))
        return cls(Shaper.from_dict(state["shaper"]), odds, payers, direct, (float(low), float(high)))


@dataclass(frozen=True)
class Penalties:
    """Chosen out of fold: ``c`` of the logistic regression (inverse strength, as scikit-learn's C), and the strengths of the two
    elastic nets of amounts in standard errors.
    """

    c: float
    payers: float
    direct: float


@dataclass(frozen=True, eq=False)
class LinearChoice:
    """Penalties, and by fold the models that were fitted with them on the rows that train the fold."""

    penalties: Penalties
    folds: tuple[LinearModels, ...]


def fit_linear(
    matrix: Matrix, log_revenue: Floats, config: LinearConfig, penalties: Penalties, threads: int = 1, steps: Steps | None = None
) -> LinearModels:
    """Fit the three models with given penalties, and with given ``steps``; None looks for those that are missed."""
    strengths = (penalties.c,), (penalties.payers,), (penalties.direct,)
    return _Paths.fit(matrix, log_revenue, config, *strengths, threads, steps).models(0, 0, 0)


def choose_linear(design: Design, config: LinearConfig) -> LinearChoice:
    """Penalties with the lowest loss on the held-out rows of all folds together, and the folds' models under them.

    Everything is judged by its squared error in log1p USD: amounts among payers, then probabilities by their product with these
    amounts, direct scores on all rows. One fold alone has too few payers to tell penalties apart; what it prefers is often chance.
    """
    c, log_revenue, folds = tuple(sorted(config.penalties)), design.held_out.log_d7, []
    amounts, products, direct = np.zeros(len(STRENGTHS_PAYERS)), np.zeros((len(c), len(STRENGTHS_PAYERS))), np.zeros(len(STRENGTHS_DIRECT))
    for k in range(design.folds.n_folds):
        split = design.fold(k)
        own = log_revenue[split.train_rows]
        paths = _Paths.fit(split.train, own, config, c, STRENGTHS_PAYERS, STRENGTHS_DIRECT, design.threads)
        for total, errors in zip((amounts, products, direct), paths.errors(split.held, log_revenue[split.held_rows]), strict=True):
            total += errors
        folds.append(paths)
    payers = int(np.argmin(amounts))
    best = int(np.argmin(products[:, payers])), payers, int(np.argmin(direct))
    penalties = Penalties(c[best[0]], STRENGTHS_PAYERS[best[1]], STRENGTHS_DIRECT[best[2]])
    return LinearChoice(penalties, tuple(paths.models(*best) for paths in folds))


@dataclass(frozen=True, eq=False)
class _Paths:
    """The three models of the same rows under every penalty: coefficients (width + 1,) each, from strong to weak."""

    shaper: Shaper
    odds: list[Floats]
    payers: list[Floats]
    direct: list[Floats]
    log_range: tuple[float, float]

    @classmethod
    def fit(
        cls,
        matrix: Matrix,
        log_revenue: Floats,
        config: LinearConfig,
        c: Sequence[float],
        payers: Sequence[float],
        direct: Sequence[float],
        threads: int = 1,
        steps: Steps | None = None,
    ) -> _Paths:
        """On encoded rows (n, m) with log1p revenue (n,); ``steps``: see `fit_linear`."""
        shaper, payer = Shaper.fit(matrix, config), log_revenue > 0
        rows = ShapedRows(replace(shaper, steps=steps or ()), matrix, threads)
        sums, paid = _Sums.of(rows, log_revenue)
        odds, first = _Logistic.of(rows, sums, payer), None
        if config.steps and steps is None:
            (first,) = odds.fit((c[len(c) // 2],), config.l1_ratio)
            p = sigmoid(odds.line(first))
            if steps := missed_steps(matrix, payer - p, p * (1.0 - p), threads):
                rows = replace(rows, shaper=replace(shaper, steps=steps))
                sums, paid = _Sums.of(rows, log_revenue, (sums, paid))
                before = odds if 2 * odds.columns.size <= LOGISTIC_VALUES else None
                del odds  # there may be no room for its columns beside others
                odds = _Logistic.of(rows, sums, payer, before)
                first = np.insert(first, -1, np.zeros(len(steps)))
        return cls(
            rows.shaper,
            odds.fit(c, config.l1_ratio, first),
            paid.elastic_nets(payers, config.l1_ratio),
            sums.elastic_nets(direct, config.l1_ratio),
            _payer_range(log_revenue),
        )

    def models(self, odds: int, payers: int, direct: int) -> LinearModels:
        """The models under the penalties of these numbers."""
        return LinearModels(self.shaper, self.odds[odds], self.payers[payers], self.direct[direct], self.log_range)

    def errors(self, held: Matrix, log_revenue: Floats) -> tuple[Floats, Floats, Floats]:
        """Squared errors by penalty, summed over held-out rows: amounts of payers (a,), products (odds, a), direct scores (d,)."""
        coefficients, payer = np.stack([*self.odds, *self.payers, *self.direct]).T, log_revenue > 0
        slopes = coefficients[:-1].astype(np.float32)
        scores = np.concatenate([shaped @ slopes + coefficients[-1] for _, shaped in ShapedRows(self.shaper, held).blocks()])
        odds, amounts, direct = np.split(scores, [len(self.odds), len(self.odds) + len(self.payers)], axis=1)
        amounts, target = np.clip(amounts, *self.log_range), log_revenue[:, None]
        products = [((sigmoid(each)[:, None] * amounts - target) ** 2).sum(axis=0) for each in odds.T]
        return ((amounts - target)[payer] ** 2).sum(axis=0), np.stack(products), ((np.clip(direct, 0.0, None) - target) ** 2).sum(axis=0)


def _payer_range(log_revenue: Floats) -> tuple[float, float]:
    """Smallest and largest log1p revenue of payers; predicted amounts are clipped to it."""
    paid = log_revenue[log_revenue > 0]
    return (float(paid.min()), float(paid.max())) if len(paid) else (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class _Logistic:
    """Logistic regressions with an elastic net's penalty on the ``chosen`` of ``width`` columns, all others 0.

    ``columns`` (n, chosen): their values, ``payer`` and ``weight`` (n,), of all rows or of all payers and some zeros; ``mean`` and
    ``gram``: means and centred sums of products of all rows, which the elastic nets of amounts need anyway.
    """

    rows: ShapedRows
    columns: FloatMatrix
    payer: NDArray[np.bool_]
    weight: Floats
    chosen: NDArray[np.int64]
    width: int
    mean: Floats
    gram: Floats

    @classmethod
    def of(cls, rows: ShapedRows, sums: _Sums, payer: NDArray[np.bool_], before: _Logistic | None = None) -> _Logistic:
        """On the columns that are screened from the sums of these rows; ``before``: of the same rows without their last columns."""
        chosen = sums.screened()
        if before is not None:
            chosen = np.append(before.chosen, chosen[chosen >= before.width])
        every = -(-len(payer) * max(len(chosen), 1) // LOGISTIC_VALUES)
        kept = payer | (np.arange(len(payer)) % every == 0)
        zeros, left = np.count_nonzero(~payer), np.count_nonzero(~payer & kept)
        weight = np.where(payer[kept], 1.0, float(zeros) / max(float(left), 1.0))
        gram = sums.gram[np.ix_(chosen, chosen)]
        if before is None:
            columns = rows.columns(chosen, kept)
        else:
            columns = np.hstack([before.columns, rows.columns(chosen[len(before.chosen) :], kept)])
        return cls(rows, columns, payer[kept], weight, chosen, rows.shaper.width, sums.mean[chosen], gram)

    def fit(self, cs: Sequence[float], l1_ratio: float, first: Floats | None = None) -> list[Floats]:
        """Coefficients (width + 1,), the last one the intercept, for each of ``cs``, which rise from strong penalties to weak ones.

        ``first``: coefficients at which the search begins, near those that are sought; None begins at the prior.

        Minimises log-loss + (l1_ratio |w|_1 + (1 - l1_ratio) |w|_2^2 / 2) / c, summed over rows, by Newton steps whose quadratic
        problems coordinate descent solves (Friedman, Hastie and Tibshirani 2010). With one class only, or without columns, all are the
        prior's log-odds.
        """
        rate = float(self.weight @ self.payer / self.weight.sum())
        at = np.append(np.zeros(len(self.chosen)), log_odds(rate))
        if rate not in (0.0, 1.0) and len(self.chosen):
            if first is None:
                variance = rate * (1.0 - rate)
                prior = _Curvature(variance * self.weight, self.mean, variance * self.gram)
                at = self._search(at, prior, cs[0], l1_ratio, FIRST_STEPS)
            else:
                at = first[[*self.chosen, -1]]
            curvature, found = _Curvature.at(self.columns, self._line(at), self.weight), []
            for c in cs:
                at = self._search(at, curvature, c, l1_ratio)
                found.append(at)
        else:
            found = [at] * len(cs)
        out = np.zeros((len(cs), self.width + 1))
        out[:, [*self.chosen, -1]] = found
        return list(out)

    def line(self, coefficients: Floats) -> Floats:
        """Log-odds of all rows under coefficients (width + 1,)."""
        if len(self.payer) < len(self.rows.matrix):
            return self.rows.lines([coefficients])[:, 0]
        return self._line(coefficients[[*self.chosen, -1]])

    def _line(self, at: Floats) -> Floats:
        return (self.columns @ at[:-1].astype(np.float32)).astype(np.float64) + at[-1]

    def _search(self, at: Floats, curvature: _Curvature, c: float, l1_ratio: float, steps: int = MAX_STEPS) -> Floats:
        """The minimum near ``at`` (chosen + 1,), by steps on a curvature that is kept; a step that raises the loss is halved."""

        def loss(z: Floats, w: Floats) -> float:
            penalty = l1_ratio * np.abs(w).sum() + 0.5 * (1.0 - l1_ratio) * (w @ w)
            return float(self.weight @ np.logaddexp(0.0, z) - z[self.payer].sum() + penalty / c)

        z = self._line(at)
        now = loss(z, at[:-1])
        for _ in range(steps):
            step = curvature.step(self.columns, self.weight * (self.payer - sigmoid(z)), z, at, c, l1_ratio)
            along, before = self._line(step), now
            for halvings in range(MAX_STEPS):
                share = 0.5**halvings
                now = loss(z + share * along, at[:-1] + share * step[:-1])
                if now <= before:
                    break
            else:
                return at
            z, at = z + share * along, at + share * step
            if before - now <= TOLERANCE * before:
                break
        return at


@dataclass(frozen=True, eq=False)
class _Curvature:
    """Second derivatives of the log-loss at some point: the rows' p (1 - p) times their weight (n,), weighted means, centred products."""

    weight: Floats
    mean: Floats
    gram: Floats

    @classmethod
    def at(cls, columns: FloatMatrix, z: Floats, weight: Floats) -> _Curvature:
        """At log-odds ``z`` (n,) of rows with these weights."""
        p = sigmoid(z)
        weight = weight * np.maximum(p * (1.0 - p), 1e-5)
        gram, total = np.zeros((columns.shape[1], columns.shape[1])), np.zeros(columns.shape[1])
        for low in range(0, len(z), BLOCK_ROWS):
            block, root = columns[low : low + BLOCK_ROWS], np.sqrt(weight[low : low + BLOCK_ROWS]).astype(np.float32)
            weighted = block * root[:, None]
            gram += weighted.T @ weighted
            total += root @ weighted
        mean = total / weight.sum()
        return cls(weight, mean, gram - weight.sum() * np.outer(mean, mean))

    def step(self, columns: FloatMatrix, excess: Floats, z: Floats, at: Floats, c: float, l1_ratio: float) -> Floats:
        """From ``at`` (c + 1,) with log-odds ``z`` to the minimum of the penalised quadratic; ``excess``: payer flag minus p, weighted."""
        n, total = len(z), self.weight.sum()
        slope = (excess.astype(np.float32) @ columns).astype(np.float64) - self.mean * excess.sum()
        response = z + excess / self.weight  # of weighted least squares, which have the same quadratic
        response = np.sqrt(self.weight) * (response - self.weight @ response / total)
        first = at[:-1].astype(np.float32)
        w = _descended(self.gram, self.gram @ at[:-1] + slope, response, [1.0 / (c * n)], l1_ratio, 1e-5, coef_init=first)
        change = w[0] - at[:-1]
        return np.append(change, excess.sum() / total - self.mean @ change)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Moments of the rows for coordinate descent and screening: counts, means and centred products, in one pass.

    ``rows`` n; ``mean`` (c,) of the columns; ``gram`` (c, c) and ``products`` (c,): centred sums of x x' and x target;
    ``target`` (n,), centred around ``level``; ``payer_products`` (c,): sums of x and the centred payer flag; ``payer_share``.
    """

    mean: Floats
    gram: Floats
    products: Floats
    payer_products: Floats
    payer_share: float
    target: Floats
    level: float

    @classmethod
    def of(cls, rows: ShapedRows, log_revenue: Floats, before: tuple[_Sums, _Sums] | None = None) -> tuple[_Sums, _Sums]:
        """The sums of all rows and of the payers among them, with log1p revenue as the target.

        ``before``: those of the same rows without their last columns; the products of the others are not summed again.
        """
        payer = log_revenue > 0
        share = float(payer.mean())
        every, paid = (_Running(rows.shaper.width, known) for known in before or (None, None))
        # Centred targets keep the sums small; the payers' own centre serves theirs.
        level, paid_level = float(log_revenue.mean()), float(log_revenue[payer].mean()) if payer.any() else 0.0
        for where, shaped in rows.blocks():
            every.add(shaped, log_revenue[where] - level, payer[where] - share)
            chosen = payer[where]
            paid.add(shaped[chosen], log_revenue[where][chosen] - paid_level, np.zeros(int(chosen.sum())))
        return every.sums(log_revenue - level, level, share), paid.sums(log_revenue[payer] - paid_level, paid_level, share)

    def screened(self) -> NDArray[np.int64]:
        """Columns whose marginal correlation with the payer flag is beyond SCREEN_Z standard errors (Fan and Lv 2008)."""
        n = len(self.target)
        variance = np.diag(self.gram) / n
        spread = np.sqrt(np.maximum(variance, 1e-12) * max(self.payer_share * (1.0 - self.payer_share), 1e-12))
        return np.flatnonzero(np.abs(self.payer_products / n) / spread * np.sqrt(n) > SCREEN_Z)

    def elastic_nets(self, strengths: Sequence[float], l1_ratio: float) -> list[Floats]:
        """Elastic nets of falling penalties, each begun at the one before; the mean when rows are too few.

        ``strengths``: in standard errors of a product of a standardised input and the target, which is the scale of chance.
        """
        n, width = len(self.target), len(self.mean)
        if n < 10 or width == 0:
            return [np.append(np.zeros(width), self.level)] * len(strengths)
        alphas = np.array(strengths) * float(self.target.std() + 1e-12) / np.sqrt(n)
        weights = _descended(self.gram, self.products, self.target, alphas, l1_ratio, 1e-3)
        return [np.append(w, self.level - self.mean @ w) for w in weights]


def _descended(
    gram: Floats, products: Floats, target: Floats, alphas: Sequence[float] | Floats, l1_ratio: float, tolerance: float, **first: Any
) -> Floats:
    """Least squares under an elastic net's penalties by coordinate descent on sums, (alphas, c); ``target`` (n,) gives rows and scale."""
    shape = np.broadcast_to(np.float32(0), (len(target), len(products)))  # the Gram matrix stands for the rows; of these only this is read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, coefficients, _ = enet_path(
            shape,
            target.astype(np.float32),
            l1_ratio=l1_ratio,
            alphas=alphas,
            precompute=gram.astype(np.float32),
            Xy=products.astype(np.float32),
            max_iter=500,
            tol=tolerance,
            check_input=False,
            **first,
        )
    return np.asarray(coefficients, dtype=np.float64).T


class _Running:
    """Sums over blocks of rows: products of a block in float32, their totals in float64."""

    def __init__(self, width: int, known: _Sums | None) -> None:
        self._n, self._known = 0, known
        self._first = 0 if known is None else len(known.mean)
        self._sum = np.zeros(width)
        self._gram = np.zeros((width, width - self._first))
        self._products = np.zeros((width, 2))

    def add(self, shaped: FloatMatrix, target: NDArray[Any], payer: NDArray[Any]) -> None:
        self._n += len(shaped)
        self._sum += shaped.sum(axis=0, dtype=np.float64)
        self._gram += shaped.T @ shaped[:, self._first :]
        self._products += shaped.T @ np.column_stack([target, payer]).astype(np.float32)

    def sums(self, target: Floats, level: float, payer_share: float) -> _Sums:
        mean, first = self._sum / max(self._n, 1), self._first
        centred = self._gram - self._n * np.outer(mean, mean[first:])
        if self._known is not None:
            centred = np.block([[self._known.gram, centred[:first]], [centred[:first].T, centred[first:]]])
        return _Sums(mean, centred, self._products[:, 0], self._products[:, 1], payer_share, target, level)
