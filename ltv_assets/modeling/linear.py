"""Linear learners on well-shaped inputs.

What belongs here: the shaping of encoded columns and three linear models on it: logistic regression of the payer flag,
elastic net of log1p(revenue) among payers, elastic net of log1p(revenue) on all rows. What does not: how they are blended
(``stacker``). Next to read: ``stacker``.

Why they are here: where effects add up in the log-odds, trees spend thousands of rows to learn a straight line. The two-part
product ``sigmoid(linear) x linear`` follows such laws with a few hundred coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, enet_path

from ltv_assets.core.config import LinearConfig
from ltv_assets.modeling.boosting import log_odds, row_dot, sigmoid
from ltv_assets.modeling.dataset import Floats, signed_log
from ltv_assets.modeling.design_matrix import FloatMatrix, Matrix

SKEWED = 1.0
"""|skewness| beyond which a column enters as its signed log1p."""
SCREEN_Z = 2.0
"""Columns enter the logistic regression when their correlation with the payer flag exceeds this many standard errors."""
CLIP = 4.0
"""Shaped values are kept within so many standard deviations."""
SHAPE_ROWS = 10_000
"""Skewness, centre, spread and gap patterns are taken from about this many evenly spaced training rows."""
SHAPE_BLOCK_ROWS = 8192
"""Rows that are shaped at a time."""
MIN_MISSING, MAX_MISSING = 0.001, 0.999
"""Columns whose share of gaps lies between these get an indicator of the gap."""


@dataclass(frozen=True, eq=False)
class Shaper:
    """Encoded columns to standardised inputs: (signed logs of) numbers, gap indicators, one-hot of frequent categories.

    numeric (c,) column numbers; log (c,) which enter as signed log1p; center, scale (c,); gaps: column numbers that get an
    indicator; one_hot: (column number, code) pairs, with their standardisation.
    """

    numeric: NDArray[np.int64]
    log: NDArray[np.bool_]
    center: FloatMatrix
    scale: FloatMatrix
    gaps: NDArray[np.int64]
    one_hot: tuple[tuple[int, float], ...]

    @classmethod
    def fit(cls, matrix: Matrix, config: LinearConfig) -> Shaper:
        """Learn the shapes from training rows; constant and all-missing columns are dropped."""
        numeric = np.setdiff1d(np.arange(len(matrix.names)), matrix.categorical)
        every = max(1, len(matrix) // SHAPE_ROWS)  # shapes need no more rows, and strides keep all periods in
        sampled, codes, seen = [], [], 0
        for block in matrix.blocks():
            sampled.append(block[-seen % every :: every, numeric].astype(np.float64))
            codes.append(block[:, list(matrix.categorical)])
            seen += len(block)
        x, columns = np.concatenate(sampled), np.concatenate(codes).T
        log = np.abs(_skewness(x)) > SKEWED
        x[:, log] = signed_log(x[:, log])
        center, scale = _moments(x)
        usable = (scale > 1e-9) & np.isfinite(scale)
        gaps = _distinct_gaps(~np.isnan(x), numeric)
        one_hot = tuple(pair for j, column in zip(matrix.categorical, columns, strict=True) for pair in _frequent(column, j, config))
        return cls(
            numeric[usable],
            log[usable],
            center[usable].astype(np.float32),
            scale[usable].astype(np.float32),
            gaps,
            one_hot,
        )

    @property
    def width(self) -> int:
        """Number of shaped columns."""
        return len(self.numeric) + len(self.gaps) + len(self.one_hot)

    def only(self, kept: NDArray[np.bool_]) -> Shaper:
        """The shaper that makes only the ``kept`` (width,) of its columns."""
        c, g = len(self.numeric), len(self.gaps)
        numeric, gaps, one_hot = kept[:c], kept[c : c + g], kept[c + g :]
        return Shaper(
            self.numeric[numeric],
            self.log[numeric],
            self.center[numeric],
            self.scale[numeric],
            self.gaps[gaps],
            tuple(pair for pair, keep in zip(self.one_hot, one_hot, strict=True) if keep),
        )

    def transform(self, values: FloatMatrix) -> FloatMatrix:
        """Shaped rows (n, width) float32, finite; every row on its own."""
        out = np.empty((len(values), self.width), dtype=np.float32)
        c, g = len(self.numeric), len(self.gaps)
        x = np.take(values, self.numeric, axis=1)
        x[:, self.log] = signed_log(x[:, self.log])
        x -= self.center
        x /= self.scale
        np.clip(x, -CLIP, CLIP, out=x)
        out[:, :c] = np.where(np.isnan(x), np.float32(0.0), x)
        out[:, c : c + g] = np.isnan(values[:, self.gaps])
        for i, (column, code) in enumerate(self.one_hot):
            out[:, c + g + i] = values[:, column] == code
        return out

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "numeric": self.numeric.tolist(),
            "log": self.log.tolist(),
            "center": self.center.astype(float).tolist(),
            "scale": self.scale.astype(float).tolist(),
            "gaps": self.gaps.tolist(),
            "one_hot": [list(pair) for pair in self.one_hot],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Shaper:
        """Inverse of ``to_dict``."""
        return cls(
            np.asarray(state["numeric"], dtype=np.int64),
            np.asarray(state["log"], dtype=bool),
            np.asarray(state["center"], dtype=np.float32),
            np.asarray(state["scale"], dtype=np.float32),
            np.asarray(state["gaps"], dtype=np.int64),
            tuple((int(column), float(code)) for column, code in state["one_hot"]),
        )


@dataclass(frozen=True, eq=False)
class ShapedRows:
    """Encoded rows, read and shaped block by block: all of them shaped take several times the memory of the encoded ones."""

    shaper: Shaper
    matrix: Matrix

    def blocks(self) -> Iterator[tuple[slice, FloatMatrix]]:
        """(which rows, those rows shaped), in order."""
        for low in range(0, len(self.matrix), SHAPE_BLOCK_ROWS):
            where = slice(low, min(low + SHAPE_BLOCK_ROWS, len(self.matrix)))
            yield where, self.shaper.transform(self.matrix.rows(where.start, where.stop))

    def columns(self, chosen: NDArray[np.int64]) -> FloatMatrix:
        """Some shaped columns of all rows, (n, chosen) float32; ``chosen`` must ascend."""
        kept = np.zeros(self.shaper.width, dtype=bool)
        kept[chosen] = True
        out = np.empty((len(self.matrix), len(chosen)), dtype=np.float32)
        for where, shaped in ShapedRows(self.shaper.only(kept), self.matrix).blocks():
            out[where] = shaped
        return out

    def lines(self, coefficients: Sequence[Floats]) -> Floats:
        """Values (n, k) of k linear functions; ``coefficients`` (width + 1,) each, the last one the intercept."""
        out = np.empty((len(self.matrix), len(coefficients)))
        for where, shaped in self.blocks():
            for i, w in enumerate(coefficients):
                out[where, i] = row_dot(shaped, w[:-1].astype(np.float32)) + w[-1]
        return out


def _skewness(x: Floats) -> Floats:
    """Third standardised moment by column, gaps left out; 0 for constant columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        d = x - np.nanmean(x, axis=0)
        m2, m3 = np.nanmean(d**2, axis=0), np.nanmean(d**3, axis=0)
        skew = m3 / m2**1.5
    return np.where(np.isfinite(skew), skew, 0.0)


def _moments(x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation by column, gaps left out; NaN for columns without a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(x, axis=0), np.nanstd(x, axis=0)


def _distinct_gaps(present: NDArray[np.bool_], numeric: NDArray[np.int64]) -> NDArray[np.int64]:
    """Columns whose gap pattern is neither trivial nor already another column's: groups go missing together."""
    share = 1.0 - present.mean(axis=0)
    seen: set[bytes] = set()
    kept = []
    for i in np.flatnonzero((share > MIN_MISSING) & (share < MAX_MISSING)):
        pattern = np.packbits(present[:, i]).tobytes()
        if pattern not in seen:
            seen.add(pattern)
            kept.append(numeric[i])
    return np.array(kept, dtype=np.int64)


def _frequent(codes: FloatMatrix, column: int, config: LinearConfig) -> list[tuple[int, float]]:
    """(column, code) of the most frequent codes that cover neither almost none nor almost all rows."""
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: config.max_one_hot]
    low, high = config.min_one_hot_rows, len(codes) - config.min_one_hot_rows
    return [(column, float(values[i])) for i in sorted(order) if low <= counts[i] <= high]


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
    chosen = sums.screened()
    return LinearModels(
        rows.shaper,
        _logistic(rows.columns(chosen), payer, penalties.c, chosen, rows.shaper.width),
        paid.elastic_nets((penalties.alpha_payers,), config.l1_ratio)[0],
        sums.elastic_nets((penalties.alpha_direct,), config.l1_ratio)[0],
        _payer_range(log_revenue),
    )


def choose_penalties(
    matrix: Matrix, log_revenue: Floats, later: Matrix, later_log: Floats, config: LinearConfig
) -> tuple[Penalties, LinearModels]:
    """Penalties with the lowest squared error in log1p USD on later rows, and the models fitted with them.

    In turn: that of payers' amounts, of the two-part score with those amounts, and of the direct score.
    """
    shaper = Shaper.fit(matrix, config)
    rows, later_rows = ShapedRows(shaper, matrix), ShapedRows(shaper, later)
    payer, later_payer = log_revenue > 0, later_log > 0
    log_range = _payer_range(log_revenue)
    sums, paid = _Sums.of(rows, log_revenue)
    chosen = sums.screened()

    by_alpha = paid.elastic_nets(ALPHAS_PAYERS, config.l1_ratio)
    amounts = np.clip(later_rows.lines(by_alpha), *log_range).T
    best = min(range(len(ALPHAS_PAYERS)), key=lambda i: _squared(amounts[i][later_payer], later_log[later_payer]))
    odds: list[Floats] = []
    telling = rows.columns(chosen)
    penalties = sorted(config.penalties)  # from strong to weak: each search begins at the one before
    for c in penalties:
        odds.append(_logistic(telling, payer, c, chosen, shaper.width, odds[-1] if odds else None))
    direct = sums.elastic_nets(ALPHAS_DIRECT, config.l1_ratio)
    scores = later_rows.lines([*odds, *direct]).T
    two_part = [sigmoid(line) * amounts[best] for line in scores[: len(odds)]]
    c = min(range(len(odds)), key=lambda i: _squared(two_part[i], later_log))
    d = min(range(len(direct)), key=lambda i: _squared(scores[len(odds) + i], later_log))
    models = LinearModels(shaper, odds[c], by_alpha[best], direct[d], log_range)
    return Penalties(penalties[c], ALPHAS_PAYERS[best], ALPHAS_DIRECT[d]), models


def _squared(score: Floats, log_revenue: Floats) -> float:
    return float(np.mean((score - log_revenue) ** 2)) if len(score) else 0.0


def _payer_range(log_revenue: Floats) -> tuple[float, float]:
    """Smallest and largest log1p revenue of payers: a line must not leave what was ever paid."""
    paid = log_revenue[log_revenue > 0]
    return (float(paid.min()), float(paid.max())) if len(paid) else (0.0, 0.0)


def _logistic(
    telling: FloatMatrix, payer: NDArray[np.bool_], c: float, chosen: NDArray[np.int64], width: int, first: Floats | None = None
) -> Floats:
    """Ridge-penalised logistic regression on the ``chosen`` of ``width`` columns, all others 0.

    ``telling``: the chosen columns; ``first`` is where the search begins. With one class only, or without columns, it is the
    prior's log-odds.
    """
    w = np.zeros(width + 1)
    if payer.all() or not payer.any() or not len(chosen):
        w[-1] = log_odds(float(payer.mean()))
        return w
    model = LogisticRegression(C=c, solver="lbfgs", max_iter=150, tol=1e-4, warm_start=True)
    if first is not None:
        model.coef_, model.intercept_ = first[None, chosen].astype(np.float32), first[-1:].astype(np.float32)
        model.classes_ = np.array([False, True])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(telling, payer)
    w[chosen], w[-1] = model.coef_[0], model.intercept_[0]
    return w


@dataclass(frozen=True, eq=False)
class _Sums:
    """What coordinate descent and screening need of the rows: counts, means and centred products, in one pass.

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
