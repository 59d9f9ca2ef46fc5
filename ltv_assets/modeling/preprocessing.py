"""Preprocessing of encoded columns for linear models.

What belongs here: signed logs, standardisation, indicators of missing values and of frequent categories, learnt from training
rows and applied block by block. What does not: the encodings before it (``encoding/``), the models (``linear.py``). Next to
read: ``linear.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.config import LinearConfig
from ltv_assets.modeling.boosting import row_dot
from ltv_assets.modeling.dataset import Floats, signed_log
from ltv_assets.modeling.design_matrix import FloatMatrix, Matrix

SKEWED = 1.0
"""|skewness| beyond which a column enters as its signed log1p."""
CLIP = 4.0
"""Shaped values are kept within so many standard deviations."""
SHAPE_ROWS = 10_000
"""Skewness, centre, spread and gap patterns are taken from about this many evenly spaced training rows."""
BLOCK_ROWS = 8192
"""Rows that are shaped at a time for a fit; sums depend on it."""
LINE_ROWS = 512
"""Rows that are shaped at a time for a prediction: so many stay in a core's own cache."""
READ_ROWS = 16_384
"""Rows that are read at a time where they are counted or a few of them are taken."""
STEP_BINS = 32
"""A number's quantiles that are candidates for a step."""
STEP_Z = 2.0
"""A step enters when its sum of excesses is beyond this many standard errors; the penalty decides on what it is worth."""
STEPS_A_COLUMN = 3
MIN_STEP_INFORMATION = 3.0
"""Steps with fewer expected payers (times non-payers' share) on one side are left out."""
Steps = tuple[tuple[int, float], ...]
"""(column number, threshold) pairs."""
MIN_MISSING, MAX_MISSING = 0.001, 0.999
"""Columns whose share of gaps lies between these get an indicator of the gap."""


@dataclass(frozen=True, eq=False)
class Shaper:
    """Encoded columns to standardised inputs: (signed logs of) numbers, gap indicators, one-hot of frequent categories.

    numeric (c,) column numbers; log (c,) which enter as signed log1p; center, scale (c,); gaps: column numbers that get an
    indicator; one_hot: (column number, code) pairs; steps: (column number, threshold) pairs, 1 above the threshold.
    """

    numeric: NDArray[np.int64]
    log: NDArray[np.bool_]
    center: FloatMatrix
    scale: FloatMatrix
    gaps: NDArray[np.int64]
    one_hot: tuple[tuple[int, float], ...]
    steps: Steps = ()

    @classmethod
    def fit(cls, matrix: Matrix, config: LinearConfig) -> Shaper:
        """Learn the shapes from training rows; constant and all-missing columns are dropped."""
        numeric = np.setdiff1d(np.arange(len(matrix.names)), matrix.categorical)
        strided, categorical = _strided(matrix, numeric), list(matrix.categorical)
        read = matrix.each_block(lambda where, values: (strided(where, values), values[:, categorical]), READ_ROWS)
        sampled, codes = zip(*(parts for _, parts in read), strict=True)
        x, columns = np.concatenate(sampled).astype(np.float64), np.concatenate(codes).T
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
        return len(self.numeric) + len(self.gaps) + len(self.one_hot) + len(self.steps)

    def only(self, kept: NDArray[np.bool_]) -> Shaper:
        """The shaper that makes only the ``kept`` (width,) of its columns."""
        numeric, gaps, one_hot, steps = np.split(kept, np.cumsum([len(self.numeric), len(self.gaps), len(self.one_hot)]))
        return Shaper(
            self.numeric[numeric],
            self.log[numeric],
            self.center[numeric],
            self.scale[numeric],
            self.gaps[gaps],
            tuple(pair for pair, keep in zip(self.one_hot, one_hot, strict=True) if keep),
            tuple(pair for pair, keep in zip(self.steps, steps, strict=True) if keep),
        )

    def transform(self, values: FloatMatrix) -> FloatMatrix:
        """Shaped rows (n, width) float32, finite; every row on its own."""
        out = np.empty((len(values), self.width), dtype=np.float32)
        c, g = len(self.numeric), len(self.gaps)
        x = np.take(values, self.numeric, axis=1)
        gaps = np.isnan(x)
        x[gaps] = 0.0  # a logarithm of NaN takes six times as long as one of a number
        x[:, self.log] = signed_log(x[:, self.log])
        x -= self.center
        x /= self.scale
        np.clip(x, -CLIP, CLIP, out=x)
        x[gaps] = 0.0
        out[:, :c] = x
        out[:, c : c + g] = np.isnan(values[:, self.gaps])
        for i, (column, code) in enumerate(self.one_hot):
            out[:, c + g + i] = values[:, column] == code
        if self.steps:
            columns, thresholds = zip(*self.steps, strict=True)
            out[:, -len(self.steps) :] = np.take(values, columns, axis=1) > np.asarray(thresholds, np.float32)
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
            "steps": [list(pair) for pair in self.steps],
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
            tuple((int(column), float(threshold)) for column, threshold in state.get("steps", ())),
        )


@dataclass(frozen=True, eq=False)
class ShapedRows:
    """Encoded rows, read and shaped block by block: shaped all at once they would take several times the memory of the encoded ones."""

    shaper: Shaper
    matrix: Matrix
    threads: int = 1

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, FloatMatrix]]:
        """(which rows, those rows shaped), in order, ``rows`` at a time."""
        return self.matrix.each_block(lambda _, values: self.shaper.transform(values), rows, self.threads)

    def columns(self, chosen: NDArray[np.int64], rows: NDArray[np.bool_]) -> FloatMatrix:
        """Some shaped columns of some rows, (rows, chosen) float32; ``chosen`` must ascend, ``rows`` (n,) says which."""
        kept = np.zeros(self.shaper.width, dtype=bool)
        kept[chosen] = True
        out, shaper, filled = np.empty((np.count_nonzero(rows), len(chosen)), dtype=np.float32), self.shaper.only(kept), 0
        for _, shaped in self.matrix.each_block(lambda where, values: shaper.transform(values[rows[where]]), BLOCK_ROWS, self.threads):
            out[filled : filled + len(shaped)] = shaped
            filled += len(shaped)
        return out

    def lines(self, coefficients: Sequence[Floats]) -> Floats:
        """Values (n, k) of k linear functions; ``coefficients`` (width + 1,) each, the last one the intercept."""
        out = np.empty((len(self.matrix), len(coefficients)))
        weights = [(w[:-1].astype(np.float32), w[-1]) for w in coefficients]
        for where, shaped in self.blocks(LINE_ROWS):
            for i, (slopes, intercept) in enumerate(weights):
                out[where, i] = row_dot(shaped, slopes) + intercept
        return out


def missed_steps(matrix: Matrix, excess: Floats, weight: Floats, threads: int = 1) -> Steps:
    """(column number, threshold) of the steps that a logistic model misses: at most STEPS_A_COLUMN of each numeric column.

    ``excess`` (n,): payer flag minus the model's probability p; ``weight`` (n,): p (1 - p). The sum of excesses above a threshold has
    mean 0 and a known variance if the model is right (a score test); each quantile of a column is tried, in one pass of counts.
    """
    numeric = np.setdiff1d(np.arange(len(matrix.names)), matrix.categorical)
    sampled = np.concatenate([rows for _, rows in matrix.each_block(_strided(matrix, numeric), READ_ROWS)])
    edges = [_quantiles(column[~np.isnan(column)]) for column in sampled.T]
    beyond = [np.append(each, np.float32(np.inf)) for each in edges]  # gaps sort behind it, into a place of their own

    def counted(own: slice, block: FloatMatrix) -> Floats:
        columns, counts = np.ascontiguousarray(block.T), np.zeros((2, len(numeric), STEP_BINS + 1))
        for i, j in enumerate(numeric):
            if len(edges[i]):
                number = np.searchsorted(beyond[i], columns[j])
                for total, values in zip(counts, (excess, weight), strict=True):
                    total[i] = np.bincount(number, values[own], STEP_BINS + 1)
        return counts

    sums = np.zeros((2, len(numeric), STEP_BINS + 1))
    for _, counts in matrix.each_block(counted, READ_ROWS, threads):
        sums += counts
    for i, each in enumerate(beyond):
        sums[:, i, 0] += sums[:, i, len(each)]  # a gap is beyond no edge
        sums[:, i, len(each)] = 0.0
    above = sums[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]  # [k]: of the rows beyond edge k
    share = above[1] / weight.sum()
    information = above[1] * (1.0 - share)
    z = np.abs(above[0] - excess.sum() * share) / np.sqrt(np.maximum(information, MIN_STEP_INFORMATION))
    z[information < MIN_STEP_INFORMATION] = 0.0
    best = np.argsort(-z, axis=1, kind="stable")[:, :STEPS_A_COLUMN]
    return tuple((int(j), float(edges[i][k])) for i, j in enumerate(numeric) for k in np.sort(best[i]) if z[i, k] > STEP_Z)


def _quantiles(values: FloatMatrix) -> FloatMatrix:
    """Distinct quantiles of a column's values (n,), of which there may be none."""
    return np.unique(np.quantile(values, np.arange(1, STEP_BINS) / STEP_BINS, method="lower")) if len(values) else values


def _strided(matrix: Matrix, columns: NDArray[np.int64]) -> Callable[[slice, FloatMatrix], FloatMatrix]:
    """Of a block some columns of evenly spaced rows: shapes need no more of them, and strides keep all periods in."""
    every = max(1, len(matrix) // SHAPE_ROWS)
    return lambda where, values: values[-where.start % every :: every, columns]


def _skewness(x: Floats) -> Floats:
    """Third standardised moment by column, gaps left out; 0 for constant columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        d = x - np.nanmean(x, axis=0)
        square = d * d
        m2, m3 = np.nanmean(square, axis=0), np.nanmean(square * d, axis=0)
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
