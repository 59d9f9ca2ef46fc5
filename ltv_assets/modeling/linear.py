"""Linear base learners on preprocessed inputs.

What belongs here: three linear models: logistic regression of the payer flag, elastic net of log1p(revenue) among payers,
elastic net of log1p(revenue) on all rows. What does not: the shaping of their inputs (``preprocessing.py``), their blend
(``blend.py``). Next to read: ``base_learners.py``.

Why they are here: where effects add up in the log-odds, trees need thousands of rows to learn a straight line. The two-part
product ``sigmoid(linear) x linear`` follows such laws with a few hundred coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from ltv_assets.core.config import LinearConfig
from ltv_assets.modeling.boosting import log_loss, log_odds, sigmoid
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import FloatMatrix, Matrix
from ltv_assets.modeling.preprocessing import ShapedRows, Shaper

SCREEN_Z = 2.0
"""Columns enter the logistic regression when their correlation with the payer flag exceeds this many standard errors."""

LOGISTIC_TOLERANCE = 1e-6
"""The search ends at a step that lowers the loss by less than this share of it, well above what products in float32 leave uncertain."""


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
    """Chosen on later time: ``c`` of the logistic regression, ``alpha`` of the two elastic nets (per-row penalty)."""

    c: float
    alpha_payers: float
    alpha_direct: float


ALPHAS_PAYERS = (0.3, 0.1, 0.03, 0.01)
ALPHAS_DIRECT = (0.03, 0.01, 0.003, 0.001)


def fit_linear(matrix: Matrix, log_revenue: Floats, config: LinearConfig, penalties: Penalties) -> LinearModels:
    """Fit the three models with given penalties."""
    rows = ShapedRows(Shaper.fit(matrix, config), matrix)
    payer = log_revenue > 0
    sums, paid = _Sums.of(rows, log_revenue)
    return LinearModels(
        rows.shaper,
        _Logistic.of(rows, sums, payer).fit(penalties.c),
        paid.elastic_nets((penalties.alpha_payers,), config.l1_ratio)[0],
        sums.elastic_nets((penalties.alpha_direct,), config.l1_ratio)[0],
        _payer_range(log_revenue),
    )


def choose_penalties(
    matrix: Matrix, log_revenue: Floats, later: Matrix, later_log: Floats, config: LinearConfig
) -> tuple[Penalties, LinearModels]:
    """Penalties with the lowest loss on later rows, and the models fitted with them.

    Amounts and direct scores are judged by their squared error in log1p USD, probabilities by their log-loss: every later row tells
    about it, where a few payers of large amounts decide the squared error of the product, and too weak a penalty wins by chance.
    """
    shaper = Shaper.fit(matrix, config)
    rows, later_rows = ShapedRows(shaper, matrix), ShapedRows(shaper, later)
    payer, later_payer = log_revenue > 0, later_log > 0
    log_range = _payer_range(log_revenue)
    sums, paid = _Sums.of(rows, log_revenue)

    by_alpha = paid.elastic_nets(ALPHAS_PAYERS, config.l1_ratio)
    amounts = np.clip(later_rows.lines(by_alpha), *log_range).T
    best = min(range(len(ALPHAS_PAYERS)), key=lambda i: _squared(amounts[i][later_payer], later_log[later_payer]))
    odds: list[Floats] = []
    logistic = _Logistic.of(rows, sums, payer)
    penalties = sorted(config.penalties)  # from strong to weak: each search begins at the one before
    for c in penalties:
        odds.append(logistic.fit(c, odds[-1] if odds else None))
    direct = sums.elastic_nets(ALPHAS_DIRECT, config.l1_ratio)
    scores = later_rows.lines([*odds, *direct]).T
    c = min(range(len(odds)), key=lambda i: log_loss(later_payer.astype(np.float64), scores[i]))
    d = min(range(len(direct)), key=lambda i: _squared(scores[len(odds) + i], later_log))
    models = LinearModels(shaper, odds[c], by_alpha[best], direct[d], log_range)
    return Penalties(penalties[c], ALPHAS_PAYERS[best], ALPHAS_DIRECT[d]), models


def _squared(score: Floats, log_revenue: Floats) -> float:
    return float(np.mean((score - log_revenue) ** 2)) if len(score) else 0.0


def _payer_range(log_revenue: Floats) -> tuple[float, float]:
    """Smallest and largest log1p revenue of payers; predicted amounts are clipped to it."""
    paid = log_revenue[log_revenue > 0]
    return (float(paid.min()), float(paid.max())) if len(paid) else (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class _Logistic:
    """Ridge-penalised logistic regressions on the ``chosen`` of ``width`` columns, all others 0.

    ``columns`` (n, chosen): their values; ``mean`` and ``gram``: their means and centred sums of products, which the elastic nets
    need anyway. They precondition the search: in the coordinates in which the loss is round at the prior, L-BFGS needs a third of the
    steps (Fisher scoring's first Hessian, kept).
    """

    columns: FloatMatrix
    payer: NDArray[np.bool_]
    chosen: NDArray[np.int64]
    width: int
    mean: Floats
    gram: Floats

    @classmethod
    def of(cls, rows: ShapedRows, sums: _Sums, payer: NDArray[np.bool_]) -> _Logistic:
        """On the columns that are screened from the sums of these rows."""
        chosen = sums.screened()
        return cls(rows.columns(chosen), payer, chosen, rows.shaper.width, sums.mean[chosen], sums.gram[np.ix_(chosen, chosen)])

    def fit(self, c: float, first: Floats | None = None) -> Floats:
        """Coefficients (width + 1,), the last one the intercept; ``first``: those at which the search begins.

        Minimises log-loss + |w|^2 / (2 c), summed over rows. With one class only, or without columns, it is the prior's log-odds.
        """
        out, rate = np.zeros(self.width + 1), float(self.payer.mean())
        if rate in (0.0, 1.0) or not len(self.chosen):
            out[-1] = log_odds(rate)
            return out
        variance = rate * (1.0 - rate)
        root = cholesky(variance * self.gram + np.eye(len(self.chosen)) / c, lower=True)
        scale = 1.0 / np.sqrt(len(self.payer) * variance)

        def loss(v: Floats) -> tuple[float, Floats]:
            w = solve_triangular(root, v[:-1], lower=True, trans="T")
            z = (self.columns @ w.astype(np.float32)).astype(np.float64) + (v[-1] * scale - self.mean @ w)
            excess = sigmoid(z) - self.payer
            total = excess.sum()
            gradient = (excess.astype(np.float32) @ self.columns).astype(np.float64) - self.mean * total + w / c
            value = float(np.logaddexp(0.0, z).sum() - z[self.payer].sum() + 0.5 * (w @ w) / c)
            return value, np.append(solve_triangular(root, gradient, lower=True), total * scale)

        begin = np.append(np.zeros(len(self.chosen)), log_odds(rate) / scale)
        if first is not None:
            w = first[self.chosen]
            begin = np.append(root.T @ w, (first[-1] + self.mean @ w) / scale)
        found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 150, "ftol": LOGISTIC_TOLERANCE, "maxcor": 20})
        w = solve_triangular(root, found.x[:-1], lower=True, trans="T")
        out[self.chosen], out[-1] = w, found.x[-1] * scale - self.mean @ w
        return out


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
    def of(cls, rows: ShapedRows, log_revenue: Floats) -> tuple[_Sums, _Sums]:
        """The sums of all rows and of the payers among them, with log1p revenue as the target."""
        payer = log_revenue > 0
        share = float(payer.mean())
        every, paid = _Running(rows.shaper.width), _Running(rows.shaper.width)
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

    def elastic_nets(self, alphas: Sequence[float], l1_ratio: float) -> list[Floats]:
        """Elastic nets (Zou and Hastie 2005) of falling ``alphas``, each begun at the one before; the mean when rows are too few."""
        n, width = len(self.target), len(self.mean)
        if n < 10 or width == 0:
            return [np.append(np.zeros(width), self.level)] * len(alphas)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            _, coefficients, _ = enet_path(
                np.broadcast_to(np.float32(0), (n, width)),  # the Gram matrix stands for the rows; of these only the shape is read
                self.target.astype(np.float32),
                l1_ratio=l1_ratio,
                alphas=np.array(alphas) * float(self.target.std() + 1e-12),
                precompute=self.gram.astype(np.float32),
                Xy=self.products.astype(np.float32),
                max_iter=500,
                tol=1e-3,
                check_input=False,
            )
        weights = np.asarray(coefficients, dtype=np.float64).T
        return [np.append(w, self.level - self.mean @ w) for w in weights]


class _Running:
    """Sums over blocks of rows: products of a block in float32, their totals in float64."""

    def __init__(self, width: int) -> None:
        self._n = 0
        self._sum = np.zeros(width)
        self._gram = np.zeros((width, width))
        self._products = np.zeros((width, 2))

    def add(self, shaped: FloatMatrix, target: NDArray[Any], payer: NDArray[Any]) -> None:
        self._n += len(shaped)
        self._sum += shaped.sum(axis=0, dtype=np.float64)
        self._gram += shaped.T @ shaped
        self._products += shaped.T @ np.column_stack([target, payer]).astype(np.float32)

    def sums(self, target: Floats, level: float, payer_share: float) -> _Sums:
        mean = self._sum / max(self._n, 1)
        gram = self._gram - self._n * np.outer(mean, mean)
        return _Sums(mean, gram, self._products[:, 0], self._products[:, 1], payer_share, target, level)
